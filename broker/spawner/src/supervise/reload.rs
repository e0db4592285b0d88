//! Reloads: SIGHUP has the policy compiled anew, and what is born from then on gets it once the broker has taken it.
//!
//! The text is read and compiled by the command, started for it; the spawner reads 16 bytes of what it leaves. Which workers may
//! exist comes from there, never from the broker: one that was taken over cannot enlarge its own reach by a reload. What is not
//! accepted changes nothing.
//!
//! ```text
//!  Idle ──SIGHUP──► Compiling ──16 bytes, sealed form──► Offered ──RELOADED──► Idle, with the new form or the old one
//!    ▲                  │ wrong, failed, too long               │
//!    └──────────────────┴──── the broker ends: once more ───────┘       while something is frozen: nothing begins
//! ```

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use jail::Role;
use spawner::plan::workers_of;
use spawner::reloads::{Outcome, Reloads};
use spawner::{Compiled, ControlError, FromSpawner, Malformed, Verdict};

use super::{ALLOWANCE, Supervisor, later};
use crate::start::{Birth, Born, Program, pipe, start};
use crate::tell::{Level, log};

/// How long reading and compiling may take: a policy of the largest size takes a fraction of it, a dead file server for ever.
const COMPILING: Duration = Duration::from_secs(60);

/// How often one policy is offered: a broker that ends each time it is given it does not take it.
const OFFERS: u32 = 3;

/// The command's exit status when it leaves a form that says why there is no policy; it has said so itself.
const NOT_COMPILED: libc::c_int = 1;

/// What reloads are done with, and how far one is. There is none where SIGHUP ends the agent.
pub(crate) struct Reload {
    command: Program,
    compiler: Program,
    /// The spawner has put a filter on itself, which programs would inherit.
    filtered: bool,
    /// SIGHUP has come, and no run has begun since.
    wanted: bool,
    /// How often the form was offered to a broker that ended.
    offers: u32,
    sequence: u32,
    stage: Stage,
    said: Reloads,
    file: File,
}

enum Stage {
    Idle,
    Compiling(Compiling),
    Offered { form: OwnedFd, workers: Vec<Role> },
}

struct Compiling {
    born: Born,
    form: OwnedFd,
    outcome: File,
    until: Instant,
    given_up: Option<GivenUp>,
}

/// Why the command was ended before it had finished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    TooLong,
    /// Something is being frozen.
    PutOff,
}

impl Reload {
    /// `file` is where [`Reloads`] are said.
    pub(crate) fn new(command: Program, compiler: Program, filtered: bool, file: OwnedFd) -> Self {
        Self {
            command,
            compiler,
            filtered,
            wanted: false,
            offers: 0,
            sequence: 0,
            stage: Stage::Idle,
            said: Reloads::default(),
            file: file.into(),
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.stage = Stage::Idle;
        self.offers = 0;
        self.said.ended = self.said.begun;
        self.said.outcome = outcome;
    }

    /// It begins once more, and ends with that run: who waits for this one's end waits for that one's.
    fn put_off(&mut self) {
        self.stage = Stage::Idle;
        self.wanted = true;
    }
}

impl Supervisor {
    /// SIGHUP. Those that come while one is under way are one more.
    pub(super) fn hang_up(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        if self.frozen && !reload.wanted {
            // Said when it can be: the line is held as well.
            log(Level::Message, &format_args!("the policy is reloaded when the filesystems are thawed"));
        }
        reload.wanted = true;
        self.say_reloads();
    }

    /// Says how far it is, for who looks.
    pub(super) fn say_reloads(&mut self) {
        let settings = self.equipment.settings.as_raw_fd();
        let Some(reload) = &mut self.reload else { return };
        reload.said.waits = self.frozen && (reload.wanted || !matches!(reload.stage, Stage::Idle));
        reload.said.settings = u8::try_from(settings).unwrap_or(u8::MAX);
        // Memory: it is not full, and nobody has sealed it.
        let _ = reload.file.write_all_at(&reload.said.encode(), 0);
    }

    /// Starts the command when it is wanted and can be.
    pub(super) fn begin_reload(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        let idle = matches!(reload.stage, Stage::Idle);
        if !reload.wanted || !idle || self.frozen || self.control.is_none() || self.ending.is_some() {
            return;
        }
        reload.wanted = false;
        reload.said.begun = reload.said.begun.wrapping_add(1);
        let equipment = &self.equipment;
        let started = jail::sealed::create(c"portreeve-settings").and_then(|form| {
            let (outcome, outcome_writer) = pipe(libc::O_CLOEXEC | libc::O_NONBLOCK)?;
            let born = start(&Birth {
                program: &reload.command,
                uid_base: equipment.uid_base,
                instance: 0,
                descriptors: [
                    Some(equipment.null.as_fd()),
                    Some(form.as_fd()),
                    Some(equipment.log.as_fd()),
                    Some(outcome_writer.as_fd()),
                    Some(equipment.settings.as_fd()),
                    Some(reload.compiler.as_fd()),
                    None,
                    None,
                    None,
                    None,
                ],
                network: None,
                root: None,
            })?;
            let outcome = File::from(outcome);
            Ok(Compiling { born, form, outcome, until: later(COMPILING), given_up: None })
        });
        match started {
            Ok(compiling) => reload.stage = Stage::Compiling(compiling),
            Err(error) => {
                log(Level::Critical, &format_args!("cannot start the command that reloads: {error}"));
                self.has_not_reloaded(Outcome::Failed);
            }
        }
        self.say_reloads();
    }

    /// What the supervisor waits for on behalf of a reload: the command's end, and until when.
    pub(super) fn compiling(&self) -> Option<(&Born, Instant)> {
        match &self.reload.as_ref()?.stage {
            Stage::Compiling(compiling) if compiling.given_up.is_some() => {
                Some((&compiling.born, later(COMPILING)))
            }
            Stage::Compiling(compiling) => Some((&compiling.born, compiling.until)),
            _ => None,
        }
    }

    /// Looks whether the command has ended, and offers the broker what it left.
    pub(super) fn follow_reload(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        let Stage::Compiling(compiling) = &mut reload.stage else { return };
        let Some(status) = compiling.born.ended() else {
            if compiling.given_up.is_none() && Instant::now() >= compiling.until {
                compiling.given_up = Some(GivenUp::TooLong);
                compiling.born.signal(libc::SIGKILL);
                log(Level::Critical, &format_args!("the policy has not been compiled after {COMPILING:?}"));
            }
            return;
        };
        let Stage::Compiling(compiling) = std::mem::replace(&mut reload.stage, Stage::Idle) else { return };
        if compiling.given_up == Some(GivenUp::PutOff) {
            reload.put_off();
            return self.say_reloads();
        }
        match compiling.left(status) {
            Some(workers) => self.offer(compiling.form, workers),
            None => {
                let says_why = libc::WIFEXITED(status)
                    && libc::WEXITSTATUS(status) == NOT_COMPILED
                    && jail::sealed::verify(compiling.form.as_fd()).is_ok();
                if !says_why {
                    let ended = super::Ended(status);
                    log(Level::Critical, &format_args!("the policy could not be compiled anew ({ended})"));
                }
                let (verdict, outcome) = match says_why {
                    true => (Verdict::NotCompiled, Outcome::NotCompiled),
                    false => (Verdict::Failed, Outcome::Failed),
                };
                self.tell(FromSpawner::Reload { verdict }, 0, &[compiling.form.as_fd()]);
                self.has_not_reloaded(outcome);
            }
        }
        self.say_reloads();
    }

    /// Has the broker take what can be started in full; the rest it only records.
    fn offer(&mut self, form: OwnedFd, workers: Vec<Role>) {
        let Some(reload) = &mut self.reload else { return };
        let free = |role: &Role| [Role::Exec, Role::Account, Role::Hook].contains(role);
        let installed = |role: &Role| self.equipment.programs.iter().any(|(of, _)| of == role);
        if reload.filtered && workers.iter().any(free) {
            log(
                Level::Critical,
                &format_args!(
                    "the new policy permits programs, which would inherit the filter that this agent was started with: restart it"
                ),
            );
            self.tell(FromSpawner::Reload { verdict: Verdict::NeedsRestart }, 0, &[form.as_fd()]);
            return self.has_not_reloaded(Outcome::NeedsRestart);
        }
        if let Some(missing) = workers.iter().find(|role| !installed(role)) {
            log(
                Level::Critical,
                &format_args!("the new policy needs {}, which is not installed", missing.executable()),
            );
            self.tell(FromSpawner::Reload { verdict: Verdict::NotInstalled }, 0, &[form.as_fd()]);
            return self.has_not_reloaded(Outcome::NotInstalled);
        }
        // 0 stands for "no answer expected".
        reload.sequence = reload.sequence.checked_add(1).unwrap_or(1);
        let sequence = reload.sequence;
        let Ok(copy) = form.try_clone() else { return self.has_not_reloaded(Outcome::Failed) };
        reload.stage = Stage::Offered { form, workers };
        if self.control.is_none() {
            return self.reload_without_answer();
        }
        reload.offers = reload.offers.saturating_add(1);
        self.tell(FromSpawner::Reload { verdict: Verdict::Compiled }, sequence, &[copy.as_fd()]);
    }

    /// The broker's answer. From here on processes are born with the new form, whatever becomes of the broker.
    pub(super) fn reloaded(&mut self, sequence: u32, accepted: bool) {
        let offered = self.reload.as_mut().filter(|reload| reload.sequence == sequence).and_then(|reload| {
            match std::mem::replace(&mut reload.stage, Stage::Idle) {
                Stage::Offered { form, workers } => Some((form, workers)),
                stage => {
                    reload.stage = stage;
                    None
                }
            }
        });
        let Some((form, workers)) = offered else {
            return self.lose_broker(Some(&ControlError::Malformed(Malformed::Unasked)));
        };
        if accepted {
            self.equipment.settings = form;
            self.equipment.workers = workers;
            // Workers of the old policy are replaced because somebody who may has asked for it, not because they crash.
            for allowance in &mut self.allowances {
                allowance.left = ALLOWANCE;
            }
            log(Level::Message, &format_args!("the policy was reloaded and is in force"));
            if let Some(reload) = &mut self.reload {
                reload.end(Outcome::Accepted);
            }
        } else {
            self.has_not_reloaded(Outcome::Refused);
        }
        self.say_reloads();
    }

    fn has_not_reloaded(&mut self, outcome: Outcome) {
        log(Level::Critical, &format_args!("the policy was not reloaded: the one in force stays"));
        if let Some(reload) = &mut self.reload {
            reload.end(outcome);
        }
    }

    /// Something is being frozen: the command could wait for it in its log. It is started again after the thaw.
    pub(super) fn put_reload_off(&mut self) {
        if let Some(reload) = &mut self.reload
            && let Stage::Compiling(compiling) = &mut reload.stage
            && self.frozen
        {
            compiling.given_up = Some(GivenUp::PutOff);
            compiling.born.signal(libc::SIGKILL);
        }
        self.say_reloads();
    }

    /// The broker that was to answer has ended; the next one is asked, but not for ever.
    pub(super) fn reload_without_answer(&mut self) {
        let Some(reload) = &mut self.reload else { return };
        if !matches!(reload.stage, Stage::Offered { .. }) {
            return;
        }
        if reload.offers < OFFERS {
            reload.put_off();
        } else {
            log(Level::Critical, &format_args!("the broker has ended each time it was given the new policy"));
            self.has_not_reloaded(Outcome::Refused);
        }
        self.say_reloads();
    }

    /// The agent ends.
    pub(super) fn end_reload(&mut self) {
        if let Some((born, _)) = self.compiling() {
            born.signal(libc::SIGKILL);
        }
    }
}

impl Compiling {
    /// The workers of a policy that was compiled: status 0, one message, and a form that nobody can change any more.
    fn left(&self, status: libc::c_int) -> Option<Vec<Role>> {
        if status != 0 {
            return None;
        }
        // One byte more than a message, so that a longer one shows.
        let mut bytes = [0; spawner::message::LENGTH + 1];
        let length = (&self.outcome).read(&mut bytes).ok()?;
        let compiled = Compiled::decode(bytes.get(..length)?).ok()?;
        jail::sealed::verify(self.form.as_fd()).ok()?;
        workers_of(compiled.workers)
    }
}
