//! Connects a [`Session`] with the channel and the broker, and waits for all three of channel, broker and clock.
//!
//! Runs in the frontend inside of its jail. One thread; nothing in it waits for one thing only.
//!
//! ```text
//!  listening:  no client ──accept──► open ──end of file──► half closed ──all answered──► no client
//!                                     └──hung up──► deaf (replies dropped) ──end of file──► no client
//!  virtio:     no host ◄──end of file, edge──► open           isa: end of file ends the process
//! ```

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pipe::{PipeError, Receiver, Sender};
use proto::message::{FromFrontend, Hello, ToFrontend, Welcome};
use proto::settings::{ChannelSettings, Method};

use crate::channel::{Channel, Client, Device, Listener, Moved, Wake};
use crate::session::{BrokerFault, Outgoing, Session, TooLarge};

/// The exit status that asks the spawner to open the channel anew.
pub const CHANNEL_GONE: i32 = 10;
/// What is read at once. So large that malloc gives untouched pages of the kernel's: what no host fills takes no memory.
const READ: usize = 128 * 1024;
/// While the session has a deadline the clock is read at least so often.
const STEP: Duration = Duration::from_millis(25);
/// So many bytes of requests are decoded in less time than a deadline could notice.
const SHORT: usize = 4 * 1024;
/// Bytes queued for the broker from which on no request is added.
const CONGESTED: usize = 1 << 20;
/// After something large, memory goes back to the system when nothing has happened for so long.
const QUIET: Duration = Duration::from_millis(200);
/// How long after a host's first words the kernel may take to say that the host is there.
const MEETING: Duration = Duration::from_millis(300);
/// How long the last replies may take to be written when the agent ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why serving ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Programs of two builds were mixed.
    #[error("the broker is of build {0}, this is {own}: reinstall, all programs together", own = proto::BUILD_ID)]
    Build(String),
    /// The broker broke the protocol.
    #[error(transparent)]
    Broker(#[from] BrokerFault),
    /// So did its messages.
    #[error(transparent)]
    Pipe(#[from] PipeError),
    /// The channel is not what the settings say.
    #[error("channel {0}: its descriptor does not fit the method {1}")]
    Method(String, &'static str),
    /// The channel is gone for good, or until it is opened anew.
    #[error("channel {0}: {1}")]
    Channel(String, io::Error),
}

impl ServeError {
    /// The process's exit status.
    pub fn exit_status(&self) -> i32 {
        match self {
            ServeError::Channel(..) => CHANNEL_GONE,
            _ => 1,
        }
    }
}

/// Messages for the broker.
struct ToBroker<'a>(&'a Sender<FromFrontend>);

impl Outgoing for ToBroker<'_> {
    fn send(&mut self, id: u64, message: &FromFrontend, payload: &[u8]) -> Result<(), TooLarge> {
        match self.0.send(id, 0, message, payload) {
            Err(PipeError::TooLarge(_)) => Err(TooLarge),
            // A broker that has gone shows at the receiving side.
            _ => Ok(()),
        }
    }

    fn is_congested(&self) -> bool {
        self.0.queued() > CONGESTED
    }
}

/// Serves the channel until the broker goes.
///
/// `confinement` is what this process's jail enforces, for the broker's log.
///
/// # Errors
/// [`ServeError`]; its exit status is the process's.
pub async fn serve(
    channel: Channel,
    sender: Sender<FromFrontend>,
    mut receiver: Receiver<ToFrontend>,
    confinement: Vec<(String, String)>,
) -> Result<(), ServeError> {
    let hello = Hello { build_id: proto::BUILD_ID.to_owned(), role: "frontend".to_owned(), confinement };
    sender.send(0, 0, &FromFrontend::Hello(hello), &[])?;
    let Some(welcome) = welcome(&mut receiver).await? else { return Ok(()) };
    let settings = &welcome.channel;
    if matches!(channel, Channel::Listener(_)) != settings.method.listens() {
        return Err(ServeError::Method(settings.name.clone(), settings.method.name()));
    }
    let mut serving = Serving {
        session: Session::new(&welcome),
        sender,
        settings: settings.clone(),
        link: Link::None,
        is_deaf: false,
        is_ended: false,
        has_spoken: false,
        buffer: vec![0; READ].into(),
        unread: 0..0,
        is_blocked: false,
        // The start was large, too.
        trim_at: Some(Instant::now() + QUIET),
        clock: Clock::new(),
    };
    let outcome = match channel {
        Channel::Device(device) => {
            serving.link = Link::Device(device);
            serving.run(None, &mut receiver).await
        }
        Channel::Listener(listener) => serving.run(Some(&listener), &mut receiver).await,
    };
    if outcome.is_ok() {
        // `agent-shutdown`: the answer comes before the end.
        let _ = tokio::time::timeout(LAST_WORDS, serving.last_words()).await;
    }
    outcome
}

/// Waits for the broker's greeting; nothing if the broker goes before.
async fn welcome(receiver: &mut Receiver<ToFrontend>) -> Result<Option<Welcome>, ServeError> {
    let mut greeted = false;
    loop {
        let Some(received) = receiver.receive().await? else { return Ok(None) };
        match received.message {
            ToFrontend::Hello(hello) if hello.build_id != proto::BUILD_ID => {
                return Err(ServeError::Build(hello.build_id));
            }
            ToFrontend::Hello(_) if !greeted => greeted = true,
            ToFrontend::Welcome(welcome) if greeted => return Ok(Some(welcome)),
            _ => return Err(BrokerFault("no greeting").into()),
        }
    }
}

/// Who is served.
enum Link {
    None,
    Client(Client),
    Device(Device),
}

struct Serving {
    session: Session,
    sender: Sender<FromFrontend>,
    settings: ChannelSettings,
    link: Link,
    /// The client is gone: what it still sent is read, nothing is written.
    is_deaf: bool,
    /// The client will send no more.
    is_ended: bool,
    /// Something has come since the last end of file.
    has_spoken: bool,
    buffer: Box<[u8]>,
    /// What was read and not taken by the session yet.
    unread: std::ops::Range<usize>,
    /// Writing has to wait for room.
    is_blocked: bool,
    /// When to give back what the start, or something large, has left.
    trim_at: Option<Instant>,
    clock: Clock,
}

/// The time for the session, whose deadlines are about others: how long they have not moved. What this process has overslept is not in
/// it. A machine that stood still, or had no time for us, had none for those others either; so they get as many chances as always.
///
/// It is read once for all that follows from one event.
struct Clock {
    /// The session's time.
    now: Instant,
    /// How far it is behind the system's.
    overslept: Duration,
    /// When we wanted to be woken, by the system's.
    alarm: Option<Instant>,
}

impl Clock {
    fn new() -> Self {
        Clock { now: Instant::now(), overslept: Duration::ZERO, alarm: None }
    }

    /// The system's time when it was last read.
    fn system(&self) -> Instant {
        self.now + self.overslept
    }

    fn read(&mut self) -> Instant {
        self.read_at(Instant::now())
    }

    fn read_at(&mut self, system: Instant) -> Instant {
        if let Some(alarm) = self.alarm.take() {
            self.overslept += system.saturating_duration_since(alarm);
        }
        // It never goes back.
        self.now = system.checked_sub(self.overslept).map_or(self.now, |now| now.max(self.now));
        self.now
    }

    /// What has passed since it was read does not count.
    fn skip(&mut self) {
        self.overslept = Instant::now().saturating_duration_since(self.now);
    }

    /// When to wake up, by the system's time, for a deadline by the session's.
    fn wake_for(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        let system = self.system();
        self.alarm = deadline.map(|deadline| (deadline + self.overslept).clamp(system, system + STEP));
        self.alarm
    }
}

/// What happened.
enum Event {
    Client(io::Result<Client>),
    Link(io::Result<Wake>),
    Broker,
    Flushed,
    Time,
}

impl Serving {
    async fn run(
        &mut self,
        listener: Option<&Listener>,
        receiver: &mut Receiver<ToFrontend>,
    ) -> Result<(), ServeError> {
        loop {
            self.feed();
            self.write()?;
            if self.is_ended && self.unread.is_empty() && (self.is_deaf || self.session.is_idle()) {
                self.leave();
            }
            if !self.unread.is_empty() && self.session.wants_input() {
                continue;
            }
            let wants_input = self.unread.is_empty() && !self.is_ended && self.session.wants_input();
            if self.session.had_much() {
                self.trim_at = Some(self.clock.system() + QUIET);
            }
            let alarm = self.clock.wake_for(self.session.deadline());
            let deadline = [alarm, self.trim_at].into_iter().flatten().min();
            let event = tokio::select! {
                biased;
                received = receiver.receive() => {
                    let Some(received) = received? else { return Ok(()) };
                    let mut broker = ToBroker(&self.sender);
                    let now = self.clock.read();
                    self.session.from_broker(received.id, received.message, received.payload, now, &mut broker)?;
                    Event::Broker
                }
                flushed = self.sender.flush(), if self.sender.queued() > 0 => {
                    // A broker that has gone is found out by receiving.
                    let _ = flushed;
                    Event::Flushed
                }
                event = self.link.next(listener, self.settings.peer_cid, wants_input, self.is_blocked, self.is_deaf) => event,
                () = sleep_until(deadline), if deadline.is_some() => Event::Time,
            };
            match event {
                Event::Broker => {
                    if !self.take_messages(receiver).await? {
                        return Ok(());
                    }
                }
                Event::Client(client) => {
                    self.link = Link::Client(client.map_err(|error| self.gone(error))?);
                    self.clock.read();
                }
                Event::Link(wake) => {
                    match wake.map_err(|error| self.gone(error))? {
                        Wake::Readable => self.read().await?,
                        Wake::Writable => self.is_blocked = false,
                        // What it has not read is dropped, not kept until there is room.
                        Wake::HungUp => self.is_deaf = true,
                    }
                    self.clock.read();
                }
                Event::Flushed | Event::Time => {
                    let now = self.clock.read();
                    self.session.tick(now, &mut ToBroker(&self.sender));
                    if self.trim_at.is_some_and(|trim_at| self.clock.system() >= trim_at) {
                        self.trim_at = None;
                        jail::memory::let_go_of_start_code();
                    }
                }
            }
        }
    }

    /// Takes all messages that are there, so that what follows from them is written at once. False when the broker has gone.
    async fn take_messages(&mut self, receiver: &mut Receiver<ToFrontend>) -> Result<bool, ServeError> {
        while receiver.may_have_more() && self.session.output().len() < READ {
            let received = tokio::select! {
                biased;
                received = receiver.receive() => received?,
                () = std::future::ready(()) => return Ok(true),
            };
            let Some(received) = received else { return Ok(false) };
            let mut broker = ToBroker(&self.sender);
            self.session.from_broker(
                received.id,
                received.message,
                received.payload,
                self.clock.now,
                &mut broker,
            )?;
        }
        Ok(true)
    }

    /// Gives the session what was read, as far as it takes it.
    fn feed(&mut self) {
        let bytes = self.buffer.get(self.unread.clone()).unwrap_or_default();
        let takes_long = bytes.len() > SHORT;
        if !bytes.is_empty() {
            self.unread.start += self.session.input(bytes, self.clock.now, &mut ToBroker(&self.sender));
        }
        if takes_long {
            // No fault of what is under way.
            self.clock.skip();
        }
    }

    async fn read(&mut self) -> Result<(), ServeError> {
        let moved = match &mut self.link {
            Link::None => return Ok(()),
            Link::Client(client) => client.read(&mut self.buffer).await.unwrap_or(Moved::Gone(Errno::EBADF)),
            Link::Device(device) => device.read(&mut self.buffer),
        };
        let is_client = matches!(self.link, Link::Client(_));
        match moved {
            Moved::Bytes(count) => {
                self.unread = 0..count;
                if !std::mem::replace(&mut self.has_spoken, true)
                    && let Link::Device(device) = &mut self.link
                    && !device.meet(MEETING).await.map_err(|error| self.gone(error))?
                {
                    // What comes next is another host's.
                    self.feed();
                    self.leave();
                }
            }
            Moved::Blocked => {}
            Moved::Ended if is_client => self.is_ended = true,
            Moved::Gone(_) if is_client => (self.is_ended, self.is_deaf) = (true, true),
            // No host is connected any more; what it left unfinished is not the next one's.
            Moved::Ended if self.settings.method == Method::VirtioSerial => {
                if self.has_spoken || self.is_deaf {
                    self.leave();
                }
            }
            Moved::Ended => return Err(self.gone(io::ErrorKind::UnexpectedEof.into())),
            Moved::Gone(errno) => return Err(self.gone(errno.into())),
        }
        Ok(())
    }

    /// Writes what there is room for.
    fn write(&mut self) -> Result<(), ServeError> {
        while (self.is_deaf || !self.is_blocked) && !self.session.output().is_empty() {
            let output = self.session.output();
            let moved = match &self.link {
                _ if self.is_deaf => Moved::Bytes(output.len()),
                Link::None => Moved::Bytes(output.len()),
                Link::Client(client) => client.write(output),
                Link::Device(device) => device.write(output),
            };
            match moved {
                Moved::Bytes(count) => {
                    self.session.sent(count, self.clock.now, &mut ToBroker(&self.sender));
                }
                Moved::Blocked | Moved::Ended => self.is_blocked = true,
                Moved::Gone(_) if matches!(self.link, Link::Client(_)) => self.is_deaf = true,
                Moved::Gone(errno) => return Err(self.gone(errno.into())),
            }
        }
        Ok(())
    }

    /// The client or host has gone, or has all it asked for.
    fn leave(&mut self) {
        self.session.leave(self.clock.now, &mut ToBroker(&self.sender));
        if matches!(self.link, Link::Client(_)) {
            self.link = Link::None;
        }
        self.unread = 0..0;
        (self.is_deaf, self.is_ended, self.is_blocked, self.has_spoken) = (false, false, false, false);
    }

    /// Writes what is left.
    async fn last_words(&mut self) {
        while !self.session.output().is_empty() {
            if self.write().is_err() || self.session.output().is_empty() {
                return;
            }
            if !matches!(
                self.link.next(None, None, false, true, self.is_deaf).await,
                Event::Link(Ok(Wake::Writable))
            ) {
                return;
            }
            self.is_blocked = false;
        }
    }

    fn gone(&self, error: io::Error) -> ServeError {
        ServeError::Channel(self.settings.name.clone(), error)
    }
}

impl Link {
    /// Waits for something to do: a client, if there is none; else bytes, if `read`, room, if `write`, the end.
    async fn next(
        &mut self,
        listener: Option<&Listener>,
        peer_cid: Option<u32>,
        read: bool,
        write: bool,
        is_deaf: bool,
    ) -> Event {
        match self {
            // That it has gone is known.
            _ if is_deaf && !read => std::future::pending().await,
            Link::None => match listener {
                Some(listener) => Event::Client(listener.accept(peer_cid).await),
                None => std::future::pending().await,
            },
            Link::Client(client) => Event::Link(client.wake(read, write).await),
            Link::Device(device) => Event::Link(device.wake(read, write).await),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_overslept_is_no_time_for_the_session() {
        let mut clock = Clock::new();
        let (begin, ms) = (clock.now, Duration::from_millis);
        // Somebody else woke us, in time.
        assert_eq!(clock.wake_for(Some(begin + ms(100))), Some(begin + ms(25)));
        assert_eq!(clock.read_at(begin + ms(10)), begin + ms(10));
        // Half a second too late.
        assert_eq!(clock.wake_for(Some(begin + ms(100))), Some(begin + ms(35)));
        assert_eq!(clock.read_at(begin + ms(535)), begin + ms(35));
        assert_eq!(clock.system(), begin + ms(535));
        // From there the session's time goes on, and what it still waits for is as far away as before.
        assert_eq!(clock.wake_for(Some(begin + ms(50))), Some(begin + ms(550)));
        assert_eq!(clock.read_at(begin + ms(550)), begin + ms(50));
        // Nobody wanted to be woken: all of it counts.
        assert_eq!(clock.wake_for(None), None);
        assert_eq!(clock.read_at(begin + ms(9_500)), begin + ms(9_000));
        // A deadline that has passed is one of now.
        assert_eq!(clock.wake_for(Some(begin)), Some(begin + ms(9_500)));
        assert_eq!(clock.read_at(begin + ms(9_600)), begin + ms(9_000));
    }
}
