//! A vsock device of a guest, by a program beside QEMU: the host's kernel needs no module for it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::guest::Options;
use crate::prepare::{Part, prepare};
use crate::talk::Agent;

/// The guest's number.
const GUEST: u32 = 7;

/// The device's back end. Ends with its owner, who keeps it as long as the guest.
#[derive(Debug)]
pub struct Vsock {
    process: Child,
    folder: tempfile::TempDir,
}

impl Vsock {
    /// Starts it. `None` where that cannot be; see [`crate::possible`].
    ///
    /// # Panics
    /// If it does not start.
    pub fn start() -> Option<Self> {
        if !crate::possible(&[Part::Vsock]) {
            return None;
        }
        let prepared = prepare(&[Part::Vsock], |_| {}).unwrap_or_else(|why| panic!("{why}"));
        let started = || -> std::io::Result<Self> {
            let folder = tempfile::Builder::new().prefix("vsock.").tempdir()?;
            let log = File::create(folder.path().join("log"))?;
            let (device, host) = (folder.path().join("device"), folder.path().join("host"));
            let process = Command::new(&prepared.vsock)
                .arg("--vm")
                .arg(format!("guest-cid={GUEST},socket={},uds-path={}", device.display(), host.display()))
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            let vsock = Vsock { process, folder };
            let until = std::time::Instant::now() + crate::talk::LIMIT;
            while !device.exists() {
                if std::time::Instant::now() > until {
                    let log = std::fs::read_to_string(vsock.folder.path().join("log"))?;
                    return Err(std::io::Error::other(format!("it does not listen: {log}")));
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Ok(vsock)
        };
        Some(started().unwrap_or_else(|error| panic!("{}: {error}", prepared.vsock.display())))
    }

    /// Options with the device. Its memory is shared with the back end.
    #[must_use]
    pub fn plugged_into(&self, options: Options) -> Options {
        options.qemu(&[
            "-object",
            "memory-backend-memfd,id=shared,size=512M,share=on",
            "-machine",
            "memory-backend=shared",
            "-chardev",
            &format!("socket,id=vsock,path={}", self.folder.path().join("device").display()),
            "-device",
            "vhost-user-vsock-pci,chardev=vsock",
        ])
    }

    /// A connection to an agent that listens on a port of the guest.
    ///
    /// # Panics
    /// If nobody listens there within five minutes.
    pub fn connect(&self, port: u32) -> Agent {
        let path: PathBuf = self.folder.path().join("host");
        Agent::connect_to_port(path, port).unwrap_or_else(|error| panic!("vsock port {port}: {error}"))
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
