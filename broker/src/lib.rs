//! The broker: decides, records, routes.
//!
//! It holds no capability and no file but the audit log's and the state file's descriptors; it opens nothing and parses
//! no text of the host's. Its peers are the frontends, the workers and the spawner, each on a socket it was handed:
//! whoever breaks the protocol is stopped. One thread; everything here is `Rc` and `Cell`.
#![forbid(unsafe_code)]

mod ask;
mod audit;
mod control;
mod deadlines;
mod dispatch;
mod files;
mod freeze;
mod frontends;
mod logs;
mod numbers;
mod outbox;
mod rates;
mod reload;
mod signal;
mod workers;

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use authorize::{Policy, Sealed};
use jail::{Ground, Role};
use proto::settings::Settings;
use tokio::sync::Notify;

pub use audit::{Audit, Descriptors};
pub use logs::to_stderr as log_to_stderr;
pub use numbers::Numbers;

/// Everything the broker was born with.
pub struct Birth {
    /// Settings and policy.
    pub sealed: Sealed,
    /// To the spawner; non-blocking from here on.
    pub control: OwnedFd,
    /// Where audit records go.
    pub audit: Audit,
    /// Where handle numbers come from.
    pub numbers: Numbers,
    /// Says, for whoever comes after, whether something is frozen.
    pub marker: Option<OwnedFd>,
}

/// The state that all tasks share.
pub(crate) struct Broker {
    /// What was configured at the start.
    pub(crate) settings: Settings,
    policy: RefCell<Rc<Policy>>,
    /// The policy has become another.
    pub(crate) reloaded: Notify,
    pub(crate) control: control::Spawner,
    pub(crate) audit: Audit,
    pub(crate) deadlines: Rc<deadlines::Deadlines>,
    pub(crate) workers: workers::Workers,
    pub(crate) files: RefCell<files::Files>,
    pub(crate) freeze: freeze::Freeze,
    pub(crate) programs: dispatch::Programs,
    pub(crate) rates: rates::Rates,
    pub(crate) frontends: RefCell<frontends::Frontends>,
    /// What the own jail enforces, for the hello.
    pub(crate) confinement: Vec<(String, String)>,
}

impl Broker {
    /// The policy in force; whoever decides by it keeps it until what it decided is done.
    pub(crate) fn policy(&self) -> Rc<Policy> {
        self.policy.borrow().clone()
    }
}

/// Enters the jail and serves until the spawner closes the control socket.
///
/// # Errors
/// A text for the log when the jail cannot be shut, or the spawner or the broker's own sockets fail.
pub fn run(birth: Birth, ground: &Ground) -> Result<(), String> {
    // Built first: epoll and its eventfd are made here, which the filter does not permit later.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| format!("cannot build the event loop: {error}"))?;
    let Birth { sealed, control, audit, numbers, marker } = birth;
    let spawner = {
        let _inside = runtime.enter();
        control::Spawner::new(control).map_err(|error| format!("cannot watch the control socket: {error}"))?
    };
    let entered = jail::enter(Role::Broker, ground, || {}).map_err(|error| error.to_string())?;
    for missing in &entered.missing {
        tracing::info!("the broker runs without {missing}");
    }
    let Sealed { settings, policy, .. } = sealed;
    let broker = Rc::new(Broker {
        workers: workers::Workers::new(settings.idle_seconds),
        files: RefCell::new(files::Files::new(numbers)),
        freeze: freeze::Freeze::new(marker, &settings.freeze),
        programs: dispatch::Programs::default(),
        rates: rates::Rates::default(),
        frontends: RefCell::default(),
        confinement: entered.report(),
        settings,
        policy: RefCell::new(Rc::new(policy)),
        reloaded: Notify::new(),
        control: spawner,
        audit,
        deadlines: Rc::default(),
    });
    let tasks = tokio::task::LocalSet::new();
    if broker.audit.is_on() {
        broker.audit.start(about(&broker));
    }
    tasks.spawn_local(broker.deadlines.clone().run());
    tasks.spawn_local(freeze::attend(broker.clone()));
    tasks.spawn_local(audit::kernel::attend(broker.clone()));
    let result = tasks.block_on(&runtime, control::serve(broker.clone()));
    broker.audit.stop();
    result
}

/// What the audit log says of a start.
fn about(broker: &Broker) -> serde_json::Map<String, serde_json::Value> {
    let confinement: std::collections::BTreeMap<_, _> = broker.confinement.iter().cloned().collect();
    let members = serde_json::json!({
        "boot": broker.settings.freeze.boot_id,
        "agent": env!("CARGO_PKG_VERSION"),
        "build": proto::BUILD_ID,
        "policy": audit::about_policy(&broker.policy()),
        "confinement": confinement,
    });
    match members {
        serde_json::Value::Object(members) => members,
        _ => serde_json::Map::new(),
    }
}

/// Larger than any sealed form.
const LIMIT: usize = 16 * 1024 * 1024;

/// Reads settings and policy from the descriptor that the spawner gave.
///
/// # Errors
/// A text for the log if it is not sealed, or of another build.
pub fn read_sealed(file: &OwnedFd) -> Result<Sealed, String> {
    let bytes =
        jail::sealed::read(file.as_fd(), LIMIT).map_err(|error| format!("settings and policy: {error}"))?;
    Sealed::decode(&bytes).map_err(|error| error.to_string())
}
