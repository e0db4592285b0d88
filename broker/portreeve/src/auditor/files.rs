//! The files that a log consists of, in the order in which they were written.
//!
//! Rotation gives files other names, and its rules can change; so the order comes from the files: one goes on from another
//! if its first record holds the hash of the other's last. Only where that says nothing, time does.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use records::{Hash, LONGEST, Line, Lines, Place, Record};

use crate::configuration;
use crate::terminal::escaped;

/// Files of one log at most: a rotation that keeps more is a mistake, or a trap.
const MOST: usize = 10_000;

/// All files of a log, the oldest first.
pub(super) struct Sources {
    paths: Vec<PathBuf>,
    /// What lies beside the log and was not read, and why.
    pub(super) left_out: Vec<String>,
}

/// What the ends of a file say about its place.
struct Ends {
    path: PathBuf,
    begin: Option<(SystemTime, Option<Hash>)>,
    last: Option<Hash>,
}

impl Sources {
    /// The log in `given`; with none, the one that the configuration names. Of one file the rotated ones beside it belong to the log,
    /// too, unless it is read `alone`. `-` is standard input.
    pub(super) fn find(given: &[PathBuf], alone: bool) -> Result<Self, String> {
        let configured;
        let given = if given.is_empty() {
            configured = [configured_log()?];
            &configured
        } else {
            given
        };
        let mut left_out = Vec::new();
        let mut paths = given.to_vec();
        if let ([path], false) = (given, alone)
            && path.as_os_str() != "-"
        {
            paths = rotated(path, &mut left_out)?;
            paths.push(path.clone());
        }
        if paths.len() > MOST {
            return Err(format!("{} files: name those that you mean, at most {MOST}", paths.len()));
        }
        let ends = paths.iter().map(|path| Ends::look(path)).collect::<Result<_, _>>()?;
        Ok(Sources { paths: in_order(ends), left_out })
    }

    /// Their names, fit for a terminal.
    pub(super) fn names(&self) -> Vec<String> {
        self.paths.iter().map(|path| name(path)).collect()
    }

    /// Their paths.
    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Gives every line of every file to `take`.
    pub(super) fn read(&self, mut take: impl FnMut(Place, &Line<'_>)) -> Result<(), String> {
        for (file, path) in self.paths.iter().enumerate() {
            let mut lines = Lines::new(BufReader::with_capacity(256 * 1024, open(path)?));
            let mut line = 0_u64;
            while let Some(next) = lines.next().map_err(|error| unreadable(path, &error))? {
                line = line.saturating_add(1);
                take(Place { file, line }, &next);
            }
        }
        Ok(())
    }
}

impl Ends {
    fn look(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| unreadable(path, &error);
        let unknown = Ends { path: path.to_owned(), begin: None, last: None };
        let is_regular = path.as_os_str() != "-" && path.metadata().map_err(failed)?.is_file();
        if !is_regular {
            // What can be read only once is read where it stands.
            return Ok(unknown);
        }
        let mut file = File::open(path).map_err(failed)?;
        let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX).saturating_add(2);
        let mut bytes = Vec::new();
        (&mut file).take(longest).read_to_end(&mut bytes).map_err(failed)?;
        let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let begin = Record::parse(first).ok().and_then(|record| Some((record.at()?, record.prev)));
        let end = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.seek(SeekFrom::Start(end.saturating_sub(longest))).map_err(failed)?;
        bytes.clear();
        (&mut file).take(longest).read_to_end(&mut bytes).map_err(failed)?;
        let last = bytes.strip_suffix(b"\n").and_then(|bytes| bytes.rsplit(|&byte| byte == b'\n').next());
        Ok(Ends { begin, last: last.map(Hash::of), ..unknown })
    }

    fn follows(&self, other: &Ends) -> bool {
        let prev = self.begin.and_then(|(_, prev)| prev);
        prev.is_some() && prev == other.last
    }
}

/// By their chain where that tells, by the time of their first records else, and as they came where nothing does.
fn in_order(mut ends: Vec<Ends>) -> Vec<PathBuf> {
    // What does not begin with a record, as a file that was just made, comes last.
    ends.sort_by_key(|ends| (ends.begin.is_none(), ends.begin.map(|(at, _)| at)));
    let mut left: VecDeque<Ends> = ends.into();
    let mut ordered: Vec<Ends> = Vec::new();
    while !left.is_empty() {
        let next = ordered.last().and_then(|last| left.iter().position(|ends| ends.follows(last)));
        let next =
            next.or_else(|| left.iter().position(|ends| !left.iter().any(|other| ends.follows(other))));
        ordered.extend(left.remove(next.unwrap_or(0)));
    }
    ordered.into_iter().map(|ends| ends.path).collect()
}

/// Opens one; `-` is standard input.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>, String> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    match file.metadata() {
        Ok(found) if found.is_dir() => Err(format!("{} is a directory: name the log's file", name(path))),
        _ => Ok(Box::new(file)),
    }
}

/// A path, fit for a terminal.
pub(super) fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { escaped(&path.to_string_lossy()) }
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::NotFound => "; which file it is stands in the configuration, under [audit]",
        io::ErrorKind::PermissionDenied => "; its mode is 0600: run this as the log's owner, usually root",
        _ => "",
    };
    format!("cannot read {}: {error}{next}", name(path))
}

/// The file that the agent on this machine writes to.
pub(super) fn configured_log() -> Result<PathBuf, String> {
    let audit = configuration::load(None)
        .map_err(|why| format!("name the log's file; the configuration does not: {why}"))?
        .audit;
    audit.path.ok_or_else(|| {
        "no sink of the configuration is a file: name one, or pipe records in, with - as the file".to_owned()
    })
}

/// Regular files beside the log whose names go on where its name ends.
fn rotated(log: &Path, left_out: &mut Vec<String>) -> Result<Vec<PathBuf>, String> {
    let Some(own) = log.file_name().map(|name| name.as_encoded_bytes()) else { return Ok(Vec::new()) };
    let folder = match log.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|error| unreadable(folder, &error))? {
        let entry = entry.map_err(|error| unreadable(folder, &error))?;
        let rest = entry.file_name();
        let Some([b'.' | b'-', ..]) = rest.as_encoded_bytes().strip_prefix(own) else { continue };
        let path = log.with_file_name(entry.file_name());
        // Not through a link: who may make files there could make us read others.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let compressed = [".gz", ".xz", ".zst", ".bz2"]
            .iter()
            .any(|end| rest.as_encoded_bytes().ends_with(end.as_bytes()));
        if compressed {
            left_out.push(format!("{} is compressed: unpack it to have it read", name(&path)));
        } else if Ends::look(&path)?.begin.is_some() {
            found.push(path);
        } else {
            left_out.push(format!("{} does not begin with a record: name it to have it read", name(&path)));
        }
    }
    found.sort();
    Ok(found)
}
