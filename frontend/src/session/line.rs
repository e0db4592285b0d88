//! A reply whose bulk data comes in pieces, written while it comes.
//!
//! Runs in the frontend. The data stands in front, the rest of the reply behind it, since only then it is known.

use proto::agent::Nothing;
use proto::{Command, Dialect, Reply, Stream, exec, file};
use serde::Serialize;

use crate::output::Encoder;
use crate::{phoenix, qga};

/// A line that has begun, or will.
#[derive(Debug)]
pub(super) struct Line {
    dialect: Dialect,
    streams: &'static [Stream],
    /// The stream whose text is open.
    open: Option<usize>,
    /// The streams before this one have been written.
    next: usize,
    has_begun: bool,
    has_member: bool,
    encoder: Encoder,
    /// Bytes of the first stream.
    bytes: u64,
}

/// A piece that the command has no place for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSuchStream;

impl Line {
    pub(super) fn new(command: &'static Command) -> Self {
        Line {
            dialect: command.dialect,
            streams: command.streams,
            open: None,
            next: 0,
            has_begun: false,
            has_member: false,
            encoder: Encoder::default(),
            bytes: 0,
        }
    }

    /// Whether some of the line has been written, so that it has to be ended.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Writes a piece of a stream.
    pub(super) fn piece(
        &mut self,
        stream: usize,
        bytes: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), NoSuchStream> {
        if self.open != Some(stream) {
            if stream < self.next || stream >= self.streams.len() {
                return Err(NoSuchStream);
            }
            self.close(output);
            self.skip_to(stream, output);
            self.open_member(stream, output);
            self.open = Some(stream);
            self.next = stream + 1;
        }
        if stream == 0 {
            self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        }
        self.encoder.push(bytes, output);
        Ok(())
    }

    /// Writes the last bytes of the first stream and the rest of the reply, up to the brace that ends its value.
    pub(super) fn finish(
        &mut self,
        last: &[u8],
        reply: &Reply,
        output: &mut Vec<u8>,
    ) -> Result<(), NoSuchStream> {
        if !last.is_empty() {
            self.piece(0, last, output)?;
        }
        self.end(reply, output);
        Ok(())
    }

    /// Ends a line that has begun as if there had been no more data.
    pub(super) fn cut_short(&mut self, command: &Command, output: &mut Vec<u8>) {
        let count = i64::try_from(self.bytes).unwrap_or(i64::MAX);
        match command.name() {
            "guest-file-read" => self.end(&file::ReadDone { count, eof: false }, output),
            "guest-exec-status" => self.end(&exec::StatusDone::default(), output),
            _ => self.end(&Nothing {}, output),
        }
    }

    fn end(&mut self, reply: &impl Serialize, output: &mut Vec<u8>) {
        if self.streams.is_empty() {
            self.begin(output);
            return self.typed(reply, output);
        }
        self.close(output);
        self.skip_to(self.streams.len(), output);
        self.begin_object(output);
        let mut rest = Vec::new();
        self.typed(reply, &mut rest);
        let members = rest.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}")).unwrap_or_default();
        if self.has_member && !members.is_empty() {
            output.extend_from_slice(self.comma());
        }
        output.extend_from_slice(members);
        output.push(b'}');
    }

    fn typed(&self, reply: &impl Serialize, output: &mut Vec<u8>) {
        match self.dialect {
            Dialect::Qga => qga::encoding::typed(reply, output),
            Dialect::Phoenix => phoenix::encoding::typed(reply, output),
        }
    }

    fn comma(&self) -> &'static [u8] {
        match self.dialect {
            Dialect::Qga => b", ",
            Dialect::Phoenix => b",",
        }
    }

    fn begin(&mut self, output: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            match self.dialect {
                Dialect::Qga => output.extend_from_slice(b"{\"return\": "),
                Dialect::Phoenix => phoenix::encoding::begin_of_reply(output),
            }
        }
    }

    fn begin_object(&mut self, output: &mut Vec<u8>) {
        if !self.has_begun {
            self.begin(output);
            output.push(b'{');
        }
    }

    fn open_member(&mut self, stream: usize, output: &mut Vec<u8>) {
        self.begin_object(output);
        if std::mem::replace(&mut self.has_member, true) {
            output.extend_from_slice(self.comma());
        }
        let member = self.streams.get(stream).map_or("", |stream| stream.member);
        output.push(b'"');
        output.extend_from_slice(member.as_bytes());
        output.extend_from_slice(match self.dialect {
            Dialect::Qga => b"\": \"",
            Dialect::Phoenix => b"\":\"",
        });
    }

    /// Writes the members that are there even without data, up to `stream`.
    fn skip_to(&mut self, stream: usize, output: &mut Vec<u8>) {
        for skipped in self.next..stream {
            if self.streams.get(skipped).is_some_and(|stream| stream.always) {
                self.open_member(skipped, output);
                output.push(b'"');
            }
        }
        self.next = self.next.max(stream);
    }

    fn close(&mut self, output: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.encoder.finish(output);
            output.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> (Line, Vec<u8>) {
        let dialect = if name.starts_with("guest-") { Dialect::Qga } else { Dialect::Phoenix };
        (Line::new(proto::find(dialect, name).unwrap()), Vec::new())
    }

    fn text(output: Vec<u8>) -> String {
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_read_has_its_data_in_front_and_its_count_behind() {
        let (mut line, mut output) = line("guest-file-read");
        line.piece(0, b"hel", &mut output).unwrap();
        line.piece(0, b"l", &mut output).unwrap();
        let done = Reply::File(file::Reply::Read(file::ReadDone { count: 5, eof: true }));
        line.finish(b"o", &done, &mut output).unwrap();
        assert_eq!(text(output), r#"{"return": {"buf-b64": "aGVsbG8=", "count": 5, "eof": true}"#);
    }

    #[test]
    fn a_read_of_nothing_has_an_empty_text() {
        let (mut line, mut output) = line("guest-file-read");
        let done = Reply::File(file::Reply::Read(file::ReadDone { count: 0, eof: true }));
        line.finish(b"", &done, &mut output).unwrap();
        assert_eq!(text(output), r#"{"return": {"buf-b64": "", "count": 0, "eof": true}"#);
        let (mut line, mut output) = self::line("file-read");
        let done = Reply::File(file::Reply::PhoenixRead(file::PhoenixReadDone { eof: true }));
        line.finish(b"", &done, &mut output).unwrap();
        assert_eq!(text(output), r#"{"return":{"bufb64":"","eof":true}"#);
    }

    #[test]
    fn a_stream_that_says_nothing_is_left_out_where_it_may_be() {
        let done = Reply::Exec(exec::Reply::Status(exec::StatusDone {
            exited: true,
            exitcode: Some(0),
            ..exec::StatusDone::default()
        }));
        let (mut line, mut output) = line("guest-exec-status");
        line.piece(1, b"err", &mut output).unwrap();
        line.finish(b"", &done, &mut output).unwrap();
        assert_eq!(text(output), r#"{"return": {"err-data": "ZXJy", "exited": true, "exitcode": 0}"#);
        let (mut line, mut output) = self::line("guest-exec-status");
        line.finish(b"", &done, &mut output).unwrap();
        assert_eq!(text(output), r#"{"return": {"exited": true, "exitcode": 0}"#);
    }

    #[test]
    fn a_stream_may_not_go_on_once_the_next_has_begun() {
        let (mut line, mut output) = line("guest-exec-status");
        line.piece(0, b"a", &mut output).unwrap();
        line.piece(1, b"b", &mut output).unwrap();
        assert_eq!(line.piece(0, b"c", &mut output), Err(NoSuchStream));
        assert_eq!(line.piece(2, b"c", &mut output), Err(NoSuchStream));
    }

    #[test]
    fn a_read_that_is_cut_short_is_a_short_read() {
        let (mut line, mut output) = line("guest-file-read");
        line.piece(0, b"hell", &mut output).unwrap();
        line.cut_short(proto::find(Dialect::Qga, "guest-file-read").unwrap(), &mut output);
        assert_eq!(text(output), r#"{"return": {"buf-b64": "aGVsbA==", "count": 4, "eof": false}"#);
    }
}
