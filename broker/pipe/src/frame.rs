//! Frames: a fixed header decoded by hand, then the message in bincode, then raw payload.
//!
//! `magic u16 · version u8 · flags u8 · head u32 · id u64 · deadline_ms u32 · length u32`, little endian.
//! `head` is the length of the message, `length` that of message and payload together. A message that does not
//! fit into one frame goes ahead in parts (flag [`MORE`]); the last frame carries its end and the payload.

use std::collections::HashMap;

use bincode::config::{self, Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use proto::limits;

use crate::PipeError;

/// Bytes of a frame's header.
pub const HEADER: usize = 24;
/// Room for a message in front of a full piece of payload.
const HEAD_BESIDE_PIECE: usize = 4096;
/// The largest frame: stays below the 212,960 bytes that a SEQPACKET socket takes by default.
pub const FRAME_MAX: usize = HEADER + HEAD_BESIDE_PIECE + limits::PIECE;
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

/// The parts of a frame to send, in order: header, message, payload.
pub struct Frame<'a> {
    /// The fixed part.
    pub header: [u8; HEADER],
    /// The message or a part of it.
    pub head: &'a [u8],
    /// Raw bytes behind it.
    pub payload: &'a [u8],
}

/// Encodes a message.
///
/// # Errors
/// [`PipeError::TooLarge`] if it is over [`limits::MESSAGE`].
pub fn encode_head<S: Encode>(message: &S) -> Result<Vec<u8>, PipeError> {
    let head = bincode::encode_to_vec(message, ENCODING).map_err(|_| PipeError::TooLarge(usize::MAX))?;
    if head.len() > limits::MESSAGE { Err(PipeError::TooLarge(head.len())) } else { Ok(head) }
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

/// Cuts a message and its payload into frames.
///
/// # Errors
/// [`PipeError::TooLarge`] if the payload is over [`limits::PIECE`].
pub(crate) fn frames<'a>(
    id: u64,
    deadline_ms: u32,
    head: &'a [u8],
    payload: &'a [u8],
) -> Result<impl Iterator<Item = Frame<'a>>, PipeError> {
    if payload.len() > limits::PIECE {
        return Err(PipeError::TooLarge(payload.len()));
    }
    let in_last = head.len() % BODY_MAX;
    // The end of the message shares a frame with the payload if both fit, else it is one more part.
    let last_at = if in_last + payload.len() <= BODY_MAX { head.len() - in_last } else { head.len() };
    let (parts, last) = head.split_at(last_at);
    let part =
        move |head: &'a [u8]| Frame { header: header(MORE, id, deadline_ms, head, &[]), head, payload: &[] };
    let end = Frame { header: header(0, id, deadline_ms, last, payload), head: last, payload };
    Ok(parts.chunks(BODY_MAX).map(part).chain(std::iter::once(end)))
}

fn header(flags: u8, id: u64, deadline_ms: u32, head: &[u8], payload: &[u8]) -> [u8; HEADER] {
    // Neither exceeds FRAME_MAX, by construction in `frames`.
    let head_length = u32::try_from(head.len()).unwrap_or(u32::MAX);
    let length = u32::try_from(head.len() + payload.len()).unwrap_or(u32::MAX);
    let mut header = [0; HEADER];
    let fields = [
        &MAGIC.to_le_bytes()[..],
        &[VERSION, flags],
        &head_length.to_le_bytes(),
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
    partial: HashMap<u64, Vec<u8>>,
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

    fn joined(id: u64, head: &[u8], payload: &[u8]) -> Vec<Vec<u8>> {
        frames(id, 5, head, payload)
            .unwrap()
            .map(|frame| [&frame.header, frame.head, frame.payload].concat())
            .collect()
    }

    proptest! {
        #[test]
        fn whatever_is_cut_into_frames_is_put_together_again(
            text in "\\PC{0,300}",
            repeat in 1_usize..2000,
            payload in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let hello = FromFrontend::Hello(Hello { build_id: text.repeat(repeat), role: text, confinement: Vec::new() });
            let head = encode_head(&hello).unwrap();
            let mut assembler = Assembler::default();
            let cut = joined(9, &head, &payload);
            let (last, parts) = cut.split_last().unwrap();
            for part in parts {
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
        let frame = [&header(MORE, 1, 0, &part, &[])[..], &part].concat();
        let mut assembler = Assembler::default();
        let taken = std::iter::repeat_with(|| assembler.accept::<FromFrontend>(&frame))
            .take_while(Result::is_ok)
            .count();
        assert_eq!(taken, limits::MESSAGE / BODY_MAX);
    }

    #[test]
    fn a_frame_that_lies_about_its_length_is_an_error() {
        let mut frame = joined(1, &encode_head(&FromFrontend::Piece).unwrap(), b"abc").remove(0);
        frame.pop();
        let error = Assembler::default().accept::<FromFrontend>(&frame).unwrap_err();
        assert_eq!(error.to_string(), "the peer sent a frame whose length is not what it says");
    }
}
