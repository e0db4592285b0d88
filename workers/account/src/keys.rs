//! The keys that may log in, worked on by a child that is the user.
//!
//! [`ask`] runs in the account worker and starts the child; [`serve`] is the child: this program under the name `portreeve-keys`, with
//! the user's ids and groups, no capability, Landlock on the home and a filter of its own, and it has all that before it reads what
//! it is to do. It trusts its arguments, which say who it is; it decodes the request as strictly as one from the broker. It never
//! follows a link below the home, and never changes a file in place: who logs in meanwhile reads the old one or the new one.

use std::ffi::CString;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jail::{Ground, Role, User};
use nix::sys::wait::WaitStatus;
use pipe::{decode_head, encode_head};
use proto::account::{Keys, Reply, Request};
use proto::agent::Nothing;
use proto::{Failed, errno_text, limits};
use runtime::{NotDone, give_up};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fchmod, fchown, fgetxattr, fsetxattr,
    fstat, fsync, mkdirat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

use crate::lines;
use crate::program::Run;
use crate::users::Users;

/// A file that is longer is neither read nor written.
const FILE: usize = 1 << 20;
/// A home on a server that does not answer hangs the child.
const LIMIT: Duration = Duration::from_secs(30);

/// Has the request done by a child, if it may be done for the user who is found.
///
/// # Errors
/// Of `permits`. In qemu-ga's words: no such user, no key; what the child says; it cannot be started or does not end in time.
pub(crate) fn ask(
    users: &Users,
    request: &Request,
    permits: impl FnOnce(&User) -> Result<(), NotDone>,
) -> Result<Reply, NotDone> {
    let name = match request {
        Request::GetKeys(request) => &request.username,
        Request::AddKeys(request) => {
            lines::check(&request.keys)?;
            &request.username
        }
        Request::RemoveKeys(request) => {
            lines::check(&request.keys)?;
            &request.username
        }
        Request::SetUserPassword(_) => return Err(Failed::new("a password is no key").into()),
    };
    let user = users.find(name)?;
    permits(&user)?;
    let own = nix::unistd::geteuid();
    if !own.is_root() && own.as_raw() != user.uid {
        let uid = user.uid;
        return Err(Failed::new(format!(
            "the agent runs as the user with id {own} and cannot change to '{name}' with id {uid}: start it as root"
        ))
        .into());
    }
    let answer = child(&user, request).unwrap_or_else(|why| {
        let home = user.home.display();
        Err(Failed::new(format!("the keys in '{home}' were not worked on: {why}")))
    });
    Ok(answer?)
}

/// What the child answers; else why there is no answer.
fn child(user: &User, request: &Request) -> Result<Result<Reply, Failed>, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let input = encode_head(request).map_err(|error| said(&error))?;
    let arguments = [Role::Keys.executable().into()].into_iter().chain(user.arguments());
    let arguments: Result<Vec<CString>, _> =
        arguments.map(|word| CString::new(std::os::unix::ffi::OsStringExt::into_vec(word))).collect();
    let ran = Run {
        file: c"/proc/self/exe",
        arguments: &arguments.map_err(|error| said(&error))?,
        environment: &[],
        input: &input,
        errors: false,
        // A file of one-letter keys takes eight bytes more for each.
        room: FILE * 8,
        limit: LIMIT,
    };
    let ran = ran.run().map_err(|error| format!("cannot start the process: {error}"))?;
    match ran.status {
        Some(WaitStatus::Exited(_, 0)) => decode_head(&ran.output).map_err(|error| said(&error)),
        Some(status) => Err(format!("the process has ended ({status:?}); its reason is in the agent's log")),
        None => Err(format!("nothing had happened after {} s", LIMIT.as_secs())),
    }
}

fn end(why: &dyn std::fmt::Display) -> ! {
    give_up(Role::Keys, why)
}

/// The child: becomes the user, reads the request, does it, answers, ends.
pub(crate) fn serve() -> ! {
    jail::report_panics(Role::Keys);
    jail::close_from(3).unwrap_or_else(|error| end(&error));
    let ground = Ground::from_arguments(Role::Keys).unwrap_or_else(|error| end(&error));
    let input = File::from(jail::take_fd(0).unwrap_or_else(|error| end(&error)));
    let mut output = File::from(jail::take_fd(1).unwrap_or_else(|error| end(&error)));
    jail::enter(Role::Keys, &ground, || {}).unwrap_or_else(|error| end(&error));

    let mut bytes = Vec::new();
    let most = u64::try_from(limits::MESSAGE).unwrap_or(u64::MAX).saturating_add(1);
    let request = match (&input).take(most).read_to_end(&mut bytes) {
        Ok(length) if length <= limits::MESSAGE => decode_head::<Request>(&bytes),
        Ok(_) => end(&"the account worker sent more than a request"),
        Err(error) => end(&error),
    };
    let request = request.unwrap_or_else(|error| end(&error));
    let user = ground.user.unwrap_or_else(|| end(&"there is no user"));
    let answer = Home::new(&user).work(&request);
    let answer = encode_head(&answer).unwrap_or_else(|error| end(&error));
    output.write_all(&answer).unwrap_or_else(|error| end(&error));
    jail::exit_now(0)
}

/// Never through a link, nor out of the directory that is started from.
const BELOW: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
const FOLDER: &str = ".ssh";
const NAME: &str = "authorized_keys";
const LABEL: &str = "security.selinux";

/// One user's home.
struct Home {
    gid: u32,
    home: PathBuf,
    /// For messages.
    folder: PathBuf,
    path: PathBuf,
}

/// What was opened, and what it holds.
struct Old {
    folder: OwnedFd,
    /// None: there is no such file.
    file: Option<(File, Vec<u8>)>,
}

impl Home {
    fn new(user: &User) -> Self {
        let folder = user.home.join(FOLDER);
        Home { gid: user.gid, home: user.home.clone(), path: folder.join(NAME), folder }
    }

    fn work(&self, request: &Request) -> Result<Reply, Failed> {
        match request {
            Request::GetKeys(_) => self.get().map(|keys| Reply::GetKeys(Keys { keys })),
            Request::AddKeys(request) => {
                lines::check(&request.keys)?;
                let reset = request.reset.unwrap_or_default();
                let old = match self.open()? {
                    Some(old) => old,
                    None => Old { folder: self.make()?, file: None },
                };
                let content = old.file.as_ref().map_or(&[][..], |(_, content)| content);
                let new = lines::with(if reset { &[] } else { content }, &request.keys);
                self.replace(&old, &new).map(|()| Reply::AddKeys(Nothing {}))
            }
            Request::RemoveKeys(request) => {
                lines::check(&request.keys)?;
                if let Some(old @ Old { file: Some((_, content)), .. }) = &self.open()? {
                    self.replace(old, &lines::without(content, &request.keys))?;
                }
                Ok(Reply::RemoveKeys(Nothing {}))
            }
            Request::SetUserPassword(_) => Err(Failed::new("a password is no key")),
        }
    }

    fn get(&self) -> Result<Vec<String>, Failed> {
        match self.open()? {
            Some(Old { file: Some((_, content)), .. }) => Ok(lines::listed(&content)),
            _ => {
                let path = self.path.display();
                let text = format!("failed to read '{path}': Failed to open file “{path}”");
                Err(Failed::system(text, Errno::NOENT.raw_os_error()))
            }
        }
    }

    /// None if there is no `.ssh`, or no home.
    fn open(&self) -> Result<Option<Old>, Failed> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened =
            openat2(CWD, &self.home, OFlags::PATH | directory, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
                .and_then(|home| openat2(home, FOLDER, OFlags::RDONLY | directory, Mode::empty(), BELOW));
        let folder = match opened {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.unreadable(&self.folder, errno)),
        };
        // A FIFO is not waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat2(&folder, NAME, flags, Mode::empty(), BELOW) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Some(Old { folder, file: None })),
            Err(errno) => return Err(self.unreadable(&self.path, errno)),
        };
        let status = fstat(&file).map_err(|errno| self.unreadable(&self.path, errno))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            let path = self.path.display();
            return Err(Failed::new(format!("failed to read '{path}': it is not a regular file")));
        }
        let file = File::from(file);
        let mut content = Vec::new();
        let length = (&file).take(FILE as u64 + 1).read_to_end(&mut content);
        let length = length.map_err(|error| {
            self.unreadable(&self.path, Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        if length > FILE {
            let path = self.path.display();
            return Err(Failed::new(format!("failed to read '{path}': it is longer than 1 MiB")));
        }
        Ok(Some(Old { folder, file: Some((file, content)) }))
    }

    fn unreadable(&self, place: &Path, errno: Errno) -> Failed {
        let (path, place) = (self.path.display(), place.display());
        let why = match errno {
            Errno::LOOP => format!(
                "'{place}' is a symbolic link, and none is followed in a home: replace it by what it leads to"
            ),
            errno => format!("'{place}': {}", errno_text(errno.raw_os_error())),
        };
        Failed { text: format!("failed to read '{path}': {why}"), errno: Some(errno.raw_os_error()) }
    }

    /// Makes `.ssh`.
    fn make(&self) -> Result<OwnedFd, Failed> {
        let said = |what: &str, errno: Errno| {
            Failed::system(format!("{what} '{}'", self.folder.display()), errno.raw_os_error())
        };
        let create = || -> Result<OwnedFd, Errno> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let home = openat2(CWD, &self.home, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
            mkdirat(&home, FOLDER, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat2(home, FOLDER, flags, Mode::empty(), BELOW)
        };
        let folder = create().map_err(|errno| said("failed to create directory", errno))?;
        let group = rustix::fs::Gid::from_raw(self.gid);
        fchown(&folder, None, Some(group))
            .map_err(|errno| said("failed to set ownership of directory", errno))?;
        fchmod(&folder, Mode::RWXU).map_err(|errno| said("failed to set permissions of directory", errno))?;
        Ok(folder)
    }

    /// Puts a new file in the old one's place.
    fn replace(&self, old: &Old, content: &[u8]) -> Result<(), Failed> {
        let path = self.path.display();
        let what = format!("failed to write to '{path}'");
        if content.len() > FILE {
            return Err(Failed::new(format!("{what}: it would be longer than 1 MiB")));
        }
        // Random keys of std's; nobody can wait for the name. They were fetched before the filter.
        let name = format!("{NAME}.{:016x}", RandomState::new().hash_one(content.len()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let written = openat2(&old.folder, &name, flags, Mode::RUSR | Mode::WUSR, BELOW)
            .map_err(|errno| Failed::system(&what, errno.raw_os_error()))
            .and_then(|file| {
                self.fill(&file.into(), old, content).and_then(|()| {
                    renameat(&old.folder, &name, &old.folder, NAME)
                        .map_err(|errno| Failed::system(&what, errno.raw_os_error()))
                })
            });
        if written.is_err() {
            // Not there if it could not be made.
            let _ = unlinkat(&old.folder, &name, AtFlags::empty());
        }
        written?;
        // What does not know this (some network filesystems) has done what it can.
        let _ = fsync(&old.folder);
        Ok(())
    }

    fn fill(&self, mut file: &File, old: &Old, content: &[u8]) -> Result<(), Failed> {
        let said = |what: &str, errno: Errno| {
            Failed::system(format!("{what} '{}'", self.path.display()), errno.raw_os_error())
        };
        fchown(file, None, Some(rustix::fs::Gid::from_raw(self.gid)))
            .map_err(|errno| said("failed to set ownership of", errno))?;
        fchmod(file, Mode::RUSR | Mode::WUSR).map_err(|errno| said("failed to set permissions of", errno))?;
        if let Some((old, _)) = &old.file {
            keep_label(old, file);
        }
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(|error| said("failed to write to", Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }
}

/// Gives the new file the old one's SELinux label. Without one it keeps what the kernel gave it, by the directory's label and the
/// policy's default: what restorecon(8) knows from its table is not the user's to set. A kernel without SELinux leaves this
/// attribute to root, and a policy may refuse it: then the default stays, too, and the log says so.
fn keep_label(old: &File, new: &File) {
    let (mut wanted, mut given) = ([0; 512], [0; 512]);
    let Ok(length) = fgetxattr(old, LABEL, &mut wanted[..]) else { return };
    let wanted = wanted.get(..length).unwrap_or_default();
    let same = fgetxattr(new, LABEL, &mut given[..]).is_ok_and(|length| given.get(..length) == Some(wanted));
    if !same && let Err(errno) = fsetxattr(new, LABEL, wanted, XattrFlags::empty()) {
        let wanted = String::from_utf8_lossy(wanted.strip_suffix(b"\0").unwrap_or(wanted));
        eprintln!("keys: the SELinux label {wanted} was not kept: {}", errno_text(errno.raw_os_error()));
    }
}
