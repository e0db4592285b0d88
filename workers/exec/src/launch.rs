//! Starts programs, each on a thread that may wait for its exec as long as that takes.
//!
//! Runs in the exec worker. One thread is kept for the next program; more exist only while execs hang, at most as many
//! as programs may be remembered.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use jail::spawn::{Program as File, RunAs, Started, spawn};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{AccessFlags, access, geteuid};
use proto::exec::{Capture, Exec, Reply};
use proto::{Failed, Text, errno_text};
use runtime::Terms;

use crate::Shared;
use crate::programs::{Limit, Pipes, Program};

/// Where programs are looked for when there is no `PATH` at all; glib's gspawn.c has these.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin:.";

/// What a program gets that brings no environment of its own.
pub(crate) struct Inherited {
    entries: Vec<CString>,
    path: Option<Vec<u8>>,
}

impl Inherited {
    /// From the environment that the agent was started with.
    pub(crate) fn new(environment: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let entry = |(name, value): &(Vec<u8>, Vec<u8>)| CString::new([name, &b"="[..], value].concat()).ok();
        let path = environment.iter().find(|(name, _)| name == b"PATH").map(|(_, value)| value.clone());
        Inherited { entries: environment.iter().filter_map(entry).collect(), path }
    }
}

/// A program to start, with all of its input.
pub(crate) struct Launch {
    pub(crate) job: u64,
    pub(crate) exec: Exec,
    pub(crate) input: Option<Vec<u8>>,
    /// How the policy wants it run, if it says.
    pub(crate) terms: Option<Arc<Terms>>,
}

/// Gives launches to threads.
pub(crate) struct Launcher(Arc<Queue>);

struct Queue {
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    launches: VecDeque<Launch>,
    /// Threads that wait for a launch, those included that have been woken but have not taken it yet.
    idle: usize,
}

impl Launcher {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Launcher(Arc::new(Queue { shared, state: Mutex::default(), changed: Condvar::new() }))
    }

    /// Starts a program some time soon and answers its job.
    pub(crate) fn launch(&self, launch: Launch) {
        /// posix_spawn(3) brings a stack of its own for the child.
        const STACK: usize = 128 * 1024;
        let job = launch.job;
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.launches.push_back(launch);
        if state.launches.len() <= state.idle {
            self.0.changed.notify_one();
            return;
        }
        let queue = self.0.clone();
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || queue.work());
        if let Err(error) = thread
            && let Some(position) = state.launches.iter().position(|launch| launch.job == job)
        {
            state.launches.remove(position);
            self.0.shared.programs().release(job);
            let text = format!("Failed to start a thread for a program ({error})");
            self.0.shared.connection.answer::<Reply>(job, Err(Failed::new(text)));
        }
    }
}

impl Queue {
    fn work(&self) {
        while let Some(launch) = self.next() {
            self.shared.start(launch);
        }
    }

    /// The next launch; none if another thread waits already.
    fn next(&self) -> Option<Launch> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(launch) = state.launches.pop_front() {
            return Some(launch);
        }
        if state.idle > 0 {
            return None;
        }
        state.idle = 1;
        loop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            if let Some(launch) = state.launches.pop_front() {
                state.idle = 0;
                return Some(launch);
            }
        }
    }
}

impl Shared {
    /// Starts a program, remembers it and answers its job.
    fn start(&self, launch: Launch) {
        let Launch { job, exec, input, terms } = launch;
        let result = self.execute(&exec, input.is_some(), terms.as_deref());
        let mut programs = self.programs();
        let wanted = programs.release(job);
        let answer = match result {
            Ok((started, pipes, limit)) => {
                let pid = started.pid;
                let most = terms.and_then(|terms| terms.output_bytes);
                let program = Program::new(job, started, pipes, input.unwrap_or_default(), limit, most);
                programs.insert(&self.epoll, program);
                if !wanted {
                    programs.unwanted(job);
                }
                Ok(Reply::Exec(proto::exec::Started { pid: pid.into() }))
            }
            Err(failed) => Err(failed),
        };
        // While the table is held: a status of a quick client must come after it.
        self.connection.answer(job, answer);
    }

    fn execute(
        &self,
        exec: &Exec,
        has_input: bool,
        terms: Option<&Terms>,
    ) -> Result<(Started, Pipes, Option<Limit>), Failed> {
        let failed = |error: io::Error| {
            let errno = error.raw_os_error();
            let why = errno.map_or_else(|| error.to_string(), errno_text);
            Failed { text: format!("Failed to execute child process “{}” ({why})", exec.path), errno }
        };
        let command = Command::new(exec, &self.inherited).map_err(failed)?;
        let run_as = terms.and_then(|terms| terms.run_as);
        let run_as = run_as.map(|runtime::RunAs { uid, gid }| RunAs { uid, gid });
        if let Some(RunAs { uid, gid }) = run_as
            && !geteuid().is_root()
        {
            let text = format!(
                "Failed to execute child process “{}” (the policy has it run as {uid}:{gid}, which needs an agent that was started \
                 by root)",
                exec.path
            );
            return Err(Failed { text, errno: Some(libc::EPERM) });
        }
        // Before there is a program that nothing would end.
        let limit = terms.and_then(|terms| terms.run_seconds).map(Limit::after).transpose();
        let limit = limit.map_err(|errno| failed(errno.into()))?;
        let (ours, theirs) = pipes(exec.capture_output, has_input).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or_default();
            Failed::system("Failed to create pipe for communicating with child process", errno)
        })?;
        let descriptors = theirs.descriptors();
        let start = |file: &CStr, arguments: &[CString]| {
            let environment = &command.environment;
            // To be ended with all that it has started, it must lead a group.
            let session = limit.is_some();
            spawn(&File { file, arguments, environment, descriptors, session, run_as })
        };
        let started = command.execute(start).map_err(failed)?;
        Ok((started, ours, limit))
    }
}

/// A request in the form in which the kernel takes it.
struct Command {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    path: Vec<u8>,
    search: Vec<u8>,
}

impl Command {
    fn new(exec: &Exec, inherited: &Inherited) -> io::Result<Self> {
        // A NUL cannot be passed on; cut off there, it would be another argument than the policy saw.
        let strings = |texts: &[Text]| -> io::Result<Vec<CString>> {
            texts
                .iter()
                .map(|text| CString::new(text.0.as_slice()).map_err(|_| Errno::EINVAL.into()))
                .collect()
        };
        let mut arguments = strings(std::slice::from_ref(&exec.path))?;
        arguments.extend(strings(exec.arg.as_deref().unwrap_or_default())?);
        let own = exec.env.as_deref();
        let environment = own.map_or_else(|| Ok(inherited.entries.clone()), strings)?;
        let own_path = own.unwrap_or_default().iter().find_map(|entry| entry.0.strip_prefix(b"PATH="));
        let search = own_path.or(inherited.path.as_deref()).unwrap_or(DEFAULT_PATH).to_vec();
        Ok(Command { arguments, environment, path: exec.path.0.clone(), search })
    }

    /// Tries the places where the program may be, as execvp(3) does. A file without a known format is given to
    /// the shell.
    fn execute(&self, start: impl Fn(&CStr, &[CString]) -> io::Result<Started>) -> io::Result<Started> {
        if self.path.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        let run = |file: &CStr| match start(file, &self.arguments) {
            Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
                let rest = self.arguments.get(1..).unwrap_or_default();
                let arguments = [&[c"/bin/sh".to_owned(), file.to_owned()], rest].concat();
                start(c"/bin/sh", &arguments)
            }
            result => result,
        };
        if self.path.contains(&b'/') {
            return run(&CString::new(self.path.as_slice())?);
        }
        let mut denied = false;
        for folder in self.search.split(|byte| *byte == b':') {
            let separator: &[u8] = if folder.is_empty() { b"" } else { b"/" };
            let file = CString::new([folder, separator, &self.path].concat())?;
            // Asking first is cheaper than a process that finds nothing to execute.
            let result = match access(file.as_c_str(), AccessFlags::X_OK) {
                Ok(()) => run(&file),
                Err(errno) => Err(errno.into()),
            };
            match result {
                Err(error) => match error.raw_os_error() {
                    Some(libc::EACCES) => denied = true,
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT) => {}
                    _ => return Err(error),
                },
                started => return started,
            }
        }
        Err(if denied { Errno::EACCES } else { Errno::ENOENT }.into())
    }
}

/// The program's ends of its pipes.
struct Theirs {
    null: std::fs::File,
    input: Option<PipeReader>,
    output: Option<PipeWriter>,
    error: Option<PipeWriter>,
    merged: bool,
}

impl Theirs {
    fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        let null = self.null.as_fd();
        let output = self.output.as_ref().map_or(null, AsFd::as_fd);
        let error = if self.merged { output } else { self.error.as_ref().map_or(null, AsFd::as_fd) };
        [self.input.as_ref().map_or(null, AsFd::as_fd), output, error]
    }
}

fn pipes(capture: Capture, has_input: bool) -> io::Result<(Pipes, Theirs)> {
    let (output, error, merged) = match capture {
        Capture::None => (false, false, false),
        Capture::Stdout => (true, false, false),
        Capture::Stderr => (false, true, false),
        Capture::Separated => (true, true, false),
        Capture::Merged => (true, false, true),
    };
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let (their_input, our_input) = some(has_input)?;
    let (our_output, their_output) = some(output)?;
    let (our_error, their_error) = some(error)?;
    if let Some(input) = &our_input {
        // Written as far as the program reads; a new pipe has no other flags that matter.
        fcntl(input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let ours = Pipes {
        input: our_input.map(OwnedFd::from),
        outputs: [our_output.map(OwnedFd::from), our_error.map(OwnedFd::from)],
    };
    Ok((ours, Theirs { null, input: their_input, output: their_output, error: their_error, merged }))
}

fn some(wanted: bool) -> io::Result<(Option<PipeReader>, Option<PipeWriter>)> {
    if !wanted {
        return Ok((None, None));
    }
    let (reader, writer) = io::pipe()?;
    Ok((Some(reader), Some(writer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(path: &str, arguments: &[&str], environment: Option<&[&str]>) -> Exec {
        let texts = |list: &[&str]| list.iter().map(|text| Text::from(*text)).collect();
        Exec {
            path: path.into(),
            arg: Some(texts(arguments)),
            env: environment.map(texts),
            input_data: proto::Payload::default(),
            capture_output: Capture::None,
        }
    }

    /// What would be executed: every attempt fails with `errno`.
    fn attempts(exec: &Exec, errno: Errno) -> (Vec<String>, Option<i32>) {
        let inherited = Inherited::new(&[(b"PATH".to_vec(), b"/usr/bin:/bin".to_vec())]);
        let seen = std::cell::RefCell::new(Vec::new());
        let result = Command::new(exec, &inherited).unwrap().execute(|file, arguments| {
            let words = arguments.iter().map(|text| text.to_str().unwrap());
            let words: Vec<&str> = std::iter::once(file.to_str().unwrap()).chain(words).collect();
            seen.borrow_mut().push(words.join(" "));
            Err(errno.into())
        });
        (seen.into_inner(), result.err().and_then(|error| error.raw_os_error()))
    }

    #[test]
    fn a_program_with_a_slash_is_not_looked_up() {
        let (tried, errno) = attempts(&exec("/bin/nothing", &["a"], None), Errno::ENOENT);
        assert_eq!(tried, ["/bin/nothing /bin/nothing a"]);
        assert_eq!(errno, Some(libc::ENOENT));
    }

    #[test]
    fn a_program_is_looked_for_in_its_own_path_and_then_in_the_agents() {
        let (tried, _) =
            attempts(&exec("true", &[], Some(&["PATH=/nonexistent:/bin", "PATH=/usr/bin"])), Errno::ENOENT);
        assert_eq!(tried, ["/bin/true true"]);
        let (tried, _) = attempts(&exec("true", &[], Some(&["A=1"])), Errno::ENOENT);
        assert_eq!(tried, ["/usr/bin/true true", "/bin/true true"]);
    }

    #[test]
    fn a_folder_that_may_not_be_searched_is_told_from_one_without_the_program() {
        assert_eq!(attempts(&exec("true", &[], None), Errno::EACCES).1, Some(libc::EACCES));
        assert_eq!(
            attempts(&exec("true", &[], None), Errno::ELOOP),
            (vec!["/usr/bin/true true".to_owned()], Some(libc::ELOOP))
        );
        assert_eq!(attempts(&exec("", &[], None), Errno::EACCES), (Vec::new(), Some(libc::ENOENT)));
    }

    #[test]
    fn a_script_without_a_first_line_is_given_to_the_shell() {
        let (tried, errno) = attempts(&exec("/bin/script", &["a", "b"], None), Errno::ENOEXEC);
        assert_eq!(tried, ["/bin/script /bin/script a b", "/bin/sh /bin/sh /bin/script a b"]);
        assert_eq!(errno, Some(libc::ENOEXEC));
    }

    #[test]
    fn a_nul_in_an_argument_is_refused_and_not_cut() {
        let mut exec = exec("/bin/true", &[], None);
        exec.arg = Some(vec![Text(b"a\0b".to_vec())]);
        let error = Command::new(&exec, &Inherited::new(&[])).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
