//! The channel's descriptor: a device that is there for good, or a listening socket and one client of it.
//!
//! Runs in the frontend and faces the host. Never opens, binds or connects anything: the descriptor came with the
//! process. Only moves bytes and says what happened; what it means is decided in [`crate::serve`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use nix::unistd::{read, write};
use socket2::SockRef;
use tokio::io::Ready;
use tokio::io::unix::AsyncFd;

/// What a read or write came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// None now.
    Blocked,
    /// End of file: the client will send no more, or no host is connected.
    Ended,
    /// The other end, or the device, is gone.
    Gone(Errno),
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Reading may give something.
    Readable,
    /// Writing may be possible.
    Writable,
    /// Nobody will read what is written.
    HungUp,
}

/// The channel as it came.
pub enum Channel {
    /// Clients come one after the other.
    Listener(Listener),
    /// One stream for ever.
    Device(Device),
}

impl Channel {
    /// Takes over the channel's descriptor. Call it before the filter: it makes an epoll instance, and inside of a runtime.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        match getsockopt(&descriptor, sockopt::AcceptConn) {
            Ok(true) => Ok(Channel::Listener(Listener { socket: pipe::watch(descriptor)? })),
            Ok(false) | Err(Errno::ENOTSOCK) => Device::new(descriptor).map(Channel::Device),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// A listening socket. Who is not accepted waits in its backlog.
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Waits for a client. `peer_cid`: on vsock, the only context that may connect; others are turned away.
    ///
    /// # Errors
    /// If the socket is broken, not if a client is.
    pub async fn accept(&self, peer_cid: Option<u32>) -> io::Result<Client> {
        loop {
            let mut ready = pipe::readable(&self.socket).await?;
            let (client, address) = match ready.try_io(|socket| SockRef::from(socket).accept()) {
                Err(_would_block) => continue,
                Ok(Ok(accepted)) => accepted,
                Ok(Err(error)) if is_of_client(&error) => continue,
                Ok(Err(error)) => return Err(error),
            };
            if let (Some(wanted), Some((cid, _))) = (peer_cid, address.as_vsock_address())
                && cid != wanted
            {
                eprintln!("frontend: a client from vsock context {cid} was turned away");
                continue;
            }
            return Ok(Client { socket: pipe::watch(client.into())?, room: None });
        }
    }
}

/// Errors of accept(2) that come from the client that is being accepted.
fn is_of_client(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO | Errno::ECONNRESET))
}

/// A connected client of a listening socket.
pub struct Client {
    socket: AsyncFd<OwnedFd>,
    /// Watched while there is no room, or nothing to be read: room, and that the client has closed both directions.
    room: Option<AsyncFd<OwnedFd>>,
}

impl Client {
    /// Waits until there is something to read, if `read`, or room to write, if `write`; unless only for reading, also
    /// for the end of both directions.
    ///
    /// # Errors
    /// If the runtime is ending, or there are no descriptors left.
    pub async fn wake(&mut self, read: bool, write: bool) -> io::Result<Wake> {
        if read && !write {
            self.room = None;
            drop(pipe::readable(&self.socket).await?);
            return Ok(Wake::Readable);
        }
        let room = match &mut self.room {
            Some(room) => room,
            none => none.insert(pipe::watch_full(self.socket.as_fd())?),
        };
        loop {
            let mut guard = tokio::select! {
                biased;
                guard = pipe::readable(&self.socket), if read => {
                    drop(guard?);
                    return Ok(Wake::Readable);
                }
                guard = room.writable() => guard?,
            };
            if guard.ready().is_write_closed() {
                return Ok(Wake::HungUp);
            }
            // Room is found out by writing; the next edge says that there is some again.
            guard.clear_ready_matching(Ready::WRITABLE);
            if write {
                return Ok(Wake::Writable);
            }
        }
    }

    /// Reads what is there; to be called after [`Self::wake`] has said [`Wake::Readable`].
    ///
    /// # Errors
    /// If the runtime is ending.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        let mut guard = pipe::readable(&self.socket).await?;
        let moved = moved(recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT));
        match moved {
            Moved::Bytes(count) if count == buffer.len() => guard.retain_ready(),
            // epoll(7): on a stream, a short read has taken all there was; what comes later is another edge.
            Moved::Bytes(_) | Moved::Blocked => guard.clear_ready_matching(Ready::READABLE),
            Moved::Ended | Moved::Gone(_) => guard.retain_ready(),
        }
        Ok(moved)
    }

    /// Writes what there is room for.
    pub fn write(&self, bytes: &[u8]) -> Moved {
        moved(send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL))
    }
}

fn moved(result: Result<usize, Errno>) -> Moved {
    match result {
        Ok(0) => Moved::Ended,
        Ok(count) => Moved::Bytes(count),
        Err(Errno::EAGAIN | Errno::EINTR) => Moved::Blocked,
        Err(errno) => Moved::Gone(errno),
    }
}

/// A character device: a virtio port, a serial line.
///
/// While no host is connected to a virtio port, poll(2) reports hang-up and end of file all the time. tokio never
/// forgets a hang-up, so the device is in an epoll instance of its own, edge-triggered, and only that one is given to tokio:
/// one wake-up when a host comes, one when it goes, none in between.
pub struct Device {
    file: OwnedFd,
    epoll: Epoll,
    edges: AsyncFd<OwnedFd>,
    /// Nothing has said so far that reading gives nothing.
    may_read: bool,
    hung_up: bool,
    waits_for_room: bool,
}

impl Device {
    fn new(file: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&file, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let edges = pipe::watch(epoll.0.try_clone()?)?;
        Ok(Device { file, epoll, edges, may_read: true, hung_up: false, waits_for_room: false })
    }

    /// As [`Client::wake`].
    ///
    /// # Errors
    /// If the runtime is ending, or the epoll instance is broken.
    pub async fn wake(&mut self, read: bool, write: bool) -> io::Result<Wake> {
        if write != self.waits_for_room {
            // Asked for only when needed: a virtio port wakes its poller each time the host has taken something.
            let room = if write { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
            let wanted = EpollFlags::EPOLLIN | EpollFlags::EPOLLET | room;
            self.epoll.modify(&self.file, &mut EpollEvent::new(wanted, 0))?;
            self.waits_for_room = write;
        }
        loop {
            if read && self.may_read {
                return Ok(Wake::Readable);
            }
            if !read && std::mem::take(&mut self.hung_up) {
                return Ok(Wake::HungUp);
            }
            let mut guard = pipe::readable(&self.edges).await?;
            let mut events = [EpollEvent::empty(); 2];
            let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            guard.clear_ready();
            let flags =
                events.iter().take(count).fold(EpollFlags::empty(), |all, event| all | event.events());
            let end = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            self.may_read |= flags.intersects(EpollFlags::EPOLLIN | end);
            self.hung_up = flags.intersects(end);
            if write && flags.contains(EpollFlags::EPOLLOUT) {
                return Ok(Wake::Writable);
            }
        }
    }

    /// What a host wrote may be there before the kernel knows that the host is, and until then reading ends, as if it had gone. Waits
    /// until the kernel knows, no longer than `limit`: false if the host has really gone.
    ///
    /// # Errors
    /// As [`Self::wake`].
    pub async fn meet(&mut self, limit: Duration) -> io::Result<bool> {
        if !self.hung_up {
            return Ok(true);
        }
        let met = async {
            while !matches!(self.wake(false, true).await?, Wake::Writable) {}
            Ok(true)
        };
        tokio::time::timeout(limit, met).await.unwrap_or(Ok(false))
    }

    /// Reads what is there.
    pub fn read(&mut self, buffer: &mut [u8]) -> Moved {
        let moved = moved(read(&self.file, buffer));
        // A virtio port gives one of its buffers at a time: a short read does not mean that there is no more.
        self.may_read = matches!(moved, Moved::Bytes(_));
        moved
    }

    /// Writes what there is room for: a virtio port takes at most 32 KiB.
    pub fn write(&self, bytes: &[u8]) -> Moved {
        moved(write(&self.file, bytes))
    }
}
