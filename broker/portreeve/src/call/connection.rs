//! The socket of `portreeve call`: lines out, lines back, an end to all waiting.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};

/// Longest answer in bytes: a file read of 48 MiB is 64 MiB of base64.
const LONGEST: usize = 96 * 1024 * 1024;

pub(super) struct Connection {
    /// Of either family; only calls that any stream socket has are made on it.
    stream: UnixStream,
    received: Vec<u8>,
    /// Of [`Self::received`], known to hold no line end.
    searched: usize,
    patience: Duration,
}

impl Connection {
    /// Connects to a unix socket's path, or to `vsock:CID:PORT`. Each answer is waited for as long as `patience`.
    ///
    /// # Errors
    /// InvalidInput for a malformed address, else those of connect(2).
    pub(super) fn open(address: &str, patience: Duration) -> io::Result<Self> {
        let stream = match address.strip_prefix("vsock:") {
            None => UnixStream::connect(address)?,
            Some(numbers) => {
                let (cid, port) = crate::qemu_ga::vsock_address(numbers).ok_or_else(|| {
                    let text = format!(
                        "\"{address}\" is no vsock address; it is vsock:CID:PORT, such as vsock:5:1024"
                    );
                    io::Error::new(io::ErrorKind::InvalidInput, text)
                })?;
                let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                connect(socket.as_raw_fd(), &VsockAddr::new(cid, port))?;
                socket.into()
            }
        };
        stream.set_write_timeout(Some(patience))?;
        Ok(Connection { stream, received: Vec::new(), searched: 0, patience })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// TimedOut or WouldBlock if it is not there in time, UnexpectedEof, InvalidData if it is longer than 96 MiB.
    pub(super) fn line(&mut self) -> io::Result<Vec<u8>> {
        let begun = Instant::now();
        let mut piece = vec![0; 64 * 1024];
        loop {
            let new = self.received.get(self.searched..).unwrap_or_default();
            if let Some(at) = new.iter().position(|byte| *byte == b'\n') {
                let end = self.searched.saturating_add(at);
                let rest = self.received.split_off(end.saturating_add(1));
                let mut line = std::mem::replace(&mut self.received, rest);
                line.truncate(end);
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.received.len();
            if self.received.len() > LONGEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line longer than 96 MiB"));
            }
            let left = self.patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.received.extend(piece.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
