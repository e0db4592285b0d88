//! Frames: a fixed header decoded by hand, then the message in bincode, then raw payload.
//!
//! `magic u16 · version u8 · flags u8 · head u32 · id u64 · deadline_ms u32 · length u32`, little endian.
//! `head` is the length of the message, `length` that of message and payload together. A message that does not
//! fit into one frame goes ahead in parts (flag [`MORE`]); the last frame carries its end and the payload.

use std::collections::BTreeMap;
use std::io::IoSlice;

use bincode::config::{self, Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bincode::{Decode, Encode};
use proto::limits;

use crate::PipeError;

/// Bytes of a frame's header.
pub const HEADER: usize = 24;
/// Room for a message in front of a full piece of payload.
const HEAD_BESIDE_PIECE: usize = 4096;
/// The largest frame: stays below the 212,960 bytes that a SEQPACKET socket takes by default.
pub const FRAME_MAX: usize = HEADER + HEAD_BESIDE_PIECE + limits::PIECE;
/// Nearly all messages are shorter.
const USUAL_HEAD: usize = 256;
/// Memory that is kept for encoding the next message.
const KEPT: usize = 4096;
const BODY_MAX: usize = FRAME_MAX - HEADER;

const MAGIC: u16 = 0x5052;
const VERSION: u8 = 1;
/// More of the same message follows in further frames with this id.
const MORE: u8 = 1;
/// Messages that may be coming in parts at the same time from one peer.
const PARTIAL_MESSAGES: usize = 16;

type Encoding = Configuration<LittleEndian, Fixint, Limit<{ limits::MESSAGE }>>;

// Fixed-width integers: one encoding for each value, and nothing to decode for most.
const ENCODING: Encoding =
    config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<{ limits::MESSAGE }>();

/// Encodes a message.
///
/// # Errors
/// [`PipeError::TooLarge`] if it is over [`limits::MESSAGE`].
pub fn encode_head<S: Encode>(message: &S) -> Result<Vec<u8>, PipeError> {
    let mut head = Vec::with_capacity(USUAL_HEAD);
    encode_behind(message, &mut head)?;
    Ok(head)
}

/// Memory in which messages are encoded, behind room for the header of the first frame.
#[derive(Default)]
pub(crate) struct Outgoing(Vec<u8>);

impl Outgoing {
    /// Encodes a message, cuts it and its payload into frames, and gives the parts of each to `send`.
    ///
    /// Each header is written over the end of the frame before, which has been sent by then.
    ///
    /// # Errors
    /// As [`encode_head`], before anything is sent, or [`PipeError::TooLarge`] if the payload is over [`limits::PIECE`]; else what
    /// `send` says.
    pub(crate) fn frames<S: Encode>(
        &mut self,
        id: u64,
        deadline_ms: u32,
        message: &S,
        payload: &[u8],
        mut send: impl FnMut(&[IoSlice<'_>]) -> Result<(), PipeError>,
    ) -> Result<(), PipeError> {
        if payload.len() > limits::PIECE {
            return Err(PipeError::TooLarge(payload.len()));
        }
        self.0.clear();
        self.0.reserve(USUAL_HEAD);
        self.0.extend_from_slice(&[0; HEADER]);
        encode_behind(message, &mut self.0)?;
        let mut rest = self.0.as_mut_slice();
        let sent = loop {
            let length = rest.len().saturating_sub(HEADER);
            // The end of the message shares a frame with the payload if both fit, else it is one more part.
            let is_last = length + payload.len() <= BODY_MAX;
            let part = if is_last { length } else { length.min(BODY_MAX) };
            let (flags, payload) = if is_last { (0, payload) } else { (MORE, &[][..]) };
            let Some((room, head)) =
                rest.get_mut(..HEADER + part).and_then(|frame| frame.split_first_chunk_mut())
            else {
                break Err(PipeError::TooLarge(length));
            };
            *room = header(flags, id, deadline_ms, head.len(), payload.len());
            let frame = IoSlice::new(rest.get(..HEADER + part).unwrap_or_default());
            // An empty part would be looked at by the kernel all the same.
            let sent =
                if payload.is_empty() { send(&[frame]) } else { send(&[frame, IoSlice::new(payload)]) };
            if is_last || sent.is_err() {
                break sent;
            }
            rest = rest.get_mut(part..).unwrap_or_default();
        };
        self.0.shrink_to(KEPT);
        sent
    }
}

fn encode_behind<S: Encode>(message: &S, bytes: &mut Vec<u8>) -> Result<(), PipeError> {
    let before = bytes.len();
    bincode::encode_into_writer(message, Appending(bytes), ENCODING)
        .map_err(|_| PipeError::TooLarge(usize::MAX))?;
    let length = bytes.len().saturating_sub(before);
    if length > limits::MESSAGE { Err(PipeError::TooLarge(length)) } else { Ok(()) }
}

/// bincode's own way into a vector encodes twice, the first time only to know how much room that takes.
struct Appending<'a>(&'a mut Vec<u8>);

impl Writer for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Decodes a message; all of `head` must belong to it.
///
/// # Errors
/// [`PipeError::Malformed`] with what is wrong.
pub fn decode_head<R: Decode<()>>(head: &[u8]) -> Result<R, PipeError> {
    let (message, length) = bincode::decode_from_slice(head, ENCODING)
        .map_err(|error| PipeError::Malformed(format!("no message: {error}")))?;
    if length == head.len() {
        Ok(message)
    } else {
        Err(PipeError::Malformed(format!("{} bytes behind a message", head.len() - length)))
    }
}

fn header(flags: u8, id: u64, deadline_ms: u32, head: usize, payload: usize) -> [u8; HEADER] {
    // Neither exceeds FRAME_MAX, by construction in `Outgoing::frames`.
    let length = u32::try_from(head + payload).unwrap_or(u32::MAX);
    let head = u32::try_from(head).unwrap_or(u32::MAX);
    let mut header = [0; HEADER];
    let fields = [
        &MAGIC.to_le_bytes()[..],
        &[VERSION, flags],
        &head.to_le_bytes(),
        &id.to_le_bytes(),
        &deadline_ms.to_le_bytes(),
        &length.to_le_bytes(),
    ];
    let mut rest = &mut header[..];
    for field in fields {
        let (place, behind) = rest.split_at_mut(field.len());
        place.copy_from_slice(field);
        rest = behind;
    }
    header
}

/// A message that has arrived.
#[derive(Debug)]
pub struct Received<'a, R> {
    /// Names the request that the message is about.
    pub id: u64,
    /// Milliseconds that the sender gives; 0 for none.
    pub deadline_ms: u32,
    /// The message.
    pub message: R,
    /// Raw bytes behind it, in the receive buffer.
    pub payload: &'a [u8],
}

/// As [`Received`], with the place of the payload in the frame instead of the payload.
pub(crate) struct Arrived<R> {
    pub(crate) id: u64,
    pub(crate) deadline_ms: u32,
    pub(crate) message: R,
    pub(crate) payload: std::ops::Range<usize>,
}

impl<R> Arrived<R> {
    pub(crate) fn in_frame(self, frame: &[u8]) -> Received<'_, R> {
        let Arrived { id, deadline_ms, message, payload } = self;
        Received { id, deadline_ms, message, payload: frame.get(payload).unwrap_or_default() }
    }
}

/// Puts the parts of messages together again.
#[derive(Default)]
pub struct Assembler {
    partial: BTreeMap<u64, Vec<u8>>,
}

impl Assembler {
    /// Takes one frame as received. Nothing comes back for a part of a message.
    ///
    /// # Errors
    /// [`PipeError::Malformed`] for whatever is not a frame, or goes over a limit.
    pub fn accept<'a, R: Decode<()>>(
        &mut self,
        frame: &'a [u8],
    ) -> Result<Option<Received<'a, R>>, PipeError> {
        Ok(self.take(frame)?.map(|arrived| arrived.in_frame(frame)))
    }

    pub(crate) fn take<R: Decode<()>>(&mut self, frame: &[u8]) -> Result<Option<Arrived<R>>, PipeError> {
        let malformed = |what: &str| PipeError::Malformed(what.to_owned());
        let (header, body) = frame
            .split_first_chunk::<HEADER>()
            .ok_or_else(|| malformed("a frame shorter than its header"))?;
        let [
            m0,
            m1,
            version,
            flags,
            h0,
            h1,
            h2,
            h3,
            i0,
            i1,
            i2,
            i3,
            i4,
            i5,
            i6,
            i7,
            d0,
            d1,
            d2,
            d3,
            l0,
            l1,
            l2,
            l3,
        ] = *header;
        if u16::from_le_bytes([m0, m1]) != MAGIC || version != VERSION || flags & !MORE != 0 {
            return Err(malformed("an unknown kind of frame"));
        }
        let id = u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let deadline_ms = u32::from_le_bytes([d0, d1, d2, d3]);
        let head_length = usize::try_from(u32::from_le_bytes([h0, h1, h2, h3])).unwrap_or(usize::MAX);
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length != body.len() {
            return Err(malformed("a frame whose length is not what it says"));
        }
        let (head, payload) =
            body.split_at_checked(head_length).ok_or_else(|| malformed("a message longer than its frame"))?;
        if flags & MORE != 0 {
            self.keep(id, head, payload)?;
            return Ok(None);
        }
        if payload.len() > limits::PIECE {
            return Err(malformed("a payload over the limit"));
        }
        let message = match self.partial.remove(&id) {
            None => decode_head(head)?,
            Some(mut whole) => {
                if whole.len() + head.len() > limits::MESSAGE {
                    return Err(malformed("a message over the limit"));
                }
                whole.extend_from_slice(head);
                decode_head(&whole)?
            }
        };
        let payload = frame.len() - payload.len()..frame.len();
        Ok(Some(Arrived { id, deadline_ms, message, payload }))
    }

    fn keep(&mut self, id: u64, head: &[u8], payload: &[u8]) -> Result<(), PipeError> {
        let held: usize = self.partial.values().map(Vec::len).sum();
        let is_new = !self.partial.contains_key(&id);
        if head.is_empty() || !payload.is_empty() {
            return Err(PipeError::Malformed("an empty part of a message".to_owned()));
        }
        if held + head.len() > limits::MESSAGE || (is_new && self.partial.len() >= PARTIAL_MESSAGES) {
            return Err(PipeError::Malformed("messages over the limit".to_owned()));
        }
        self.partial.entry(id).or_default().extend_from_slice(head);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::message::{FromFrontend, FromWorker, Hello, ToWorker};

    fn cut(id: u64, message: &FromFrontend, payload: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let sent = Outgoing::default().frames(id, 5, message, payload, |parts| {
            frames.push(parts.iter().flat_map(|part| part.to_vec()).collect());
            Ok(())
        });
        sent.unwrap();
        frames
    }

    proptest! {
        #[test]
        fn whatever_is_cut_into_frames_is_put_together_again(
            text in "\\PC{0,300}",
            repeat in 1_usize..2000,
            payload in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let hello = FromFrontend::Hello(Hello { build_id: text.repeat(repeat), role: text, confinement: Vec::new() });
            let mut assembler = Assembler::default();
            let cut = cut(9, &hello, &payload);
            let (last, parts) = cut.split_last().unwrap();
            for part in parts {
                prop_assert!(part.len() <= FRAME_MAX);
                prop_assert!(assembler.accept::<FromFrontend>(part).unwrap().is_none());
            }
            let received = assembler.accept::<FromFrontend>(last).unwrap().unwrap();
            prop_assert_eq!(&received.message, &hello);
            prop_assert_eq!(received.payload, &payload[..]);
        }

        #[test]
        fn no_bytes_make_the_decoder_fail_in_any_other_way_than_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = Assembler::default().accept::<FromFrontend>(&bytes);
            let _ = decode_head::<FromWorker>(&bytes);
            let _ = decode_head::<ToWorker>(&bytes);
        }
    }

    /// bincode aborts the process on a length of 2^64-1 if it is not told a limit.
    #[test]
    fn a_length_that_nobody_could_hold_is_an_error() {
        let mut head = 6_u32.to_le_bytes().to_vec();
        head.extend(u64::MAX.to_le_bytes());
        let error = decode_head::<FromFrontend>(&head).unwrap_err();
        assert!(error.to_string().starts_with("the peer sent no message: "), "{error}");
    }

    #[test]
    fn a_message_with_bytes_behind_it_is_an_error() {
        let mut head = encode_head(&FromFrontend::Piece).unwrap();
        head.push(0);
        let error = decode_head::<FromFrontend>(&head).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent 1 bytes behind a message");
    }

    #[test]
    fn a_message_in_endless_parts_is_stopped_at_the_limit() {
        let part = vec![1; BODY_MAX];
        let frame = [&header(MORE, 1, 0, part.len(), 0)[..], &part].concat();
        let mut assembler = Assembler::default();
        let taken = std::iter::repeat_with(|| assembler.accept::<FromFrontend>(&frame))
            .take_while(Result::is_ok)
            .count();
        assert_eq!(taken, limits::MESSAGE / BODY_MAX);
    }

    #[test]
    fn a_frame_that_lies_about_its_length_is_an_error() {
        let mut frame = cut(1, &FromFrontend::Piece, b"abc").remove(0);
        frame.pop();
        let error = Assembler::default().accept::<FromFrontend>(&frame).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent a frame whose length is not what it says");
    }
}
