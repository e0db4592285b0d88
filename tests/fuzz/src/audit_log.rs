//! The reader of audit logs, on logs that anybody may have written.

use records::{Head, Lines, Place, Verdict, Verifier};

/// Whatever the bytes are, there is a verdict; a log's own head changes nothing about it; and where the verdict is that a log is whole,
/// it is not once a byte of it is another.
pub(crate) fn read(data: &[u8]) {
    let verdict = verify(data, &[]);
    let counted = verdict.segments.iter().map(|segment| segment.records).sum::<u64>();
    assert!(counted <= verdict.records, "a record is in two segments");
    let Some(last) = verdict.last else { return };
    let head = Head { sequence: last.sequence, hash: last.hash };
    let witnessed = verify(data, &[head]);
    assert_eq!(witnessed.is_whole(), verdict.is_whole());
    assert!(witnessed.witnesses.iter().all(|witness| witness.found.is_some()), "the head is in the log");
    // Lines that are none are no part of the chain, and older records may lack.
    if verdict.is_whole() && verdict.unchained == 0 && verdict.notices.is_empty() {
        let mut changed = data.to_vec();
        let chosen =
            last.hash.bytes().iter().fold(0_usize, |sum, byte| sum.wrapping_mul(251) ^ usize::from(*byte));
        let position = chosen % data.len();
        changed[position] ^= 1 | data.len().to_le_bytes()[0];
        assert!(!verify(&changed, &[head]).is_whole(), "byte {position} can be changed");
    }
}

fn verify(data: &[u8], heads: &[Head]) -> Verdict {
    let mut verifier = Verifier::new(heads.iter().copied());
    let mut lines = Lines::new(data);
    let mut line = 0;
    while let Some(next) = lines.next().expect("memory can be read") {
        line += 1;
        verifier.line(Place { file: 0, line }, &next);
    }
    assert!(line <= data.len() as u64, "no line comes from nowhere");
    verifier.finish()
}
