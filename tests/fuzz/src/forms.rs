//! Decoders of one value: whatever decodes is written back as the same bytes, or as the same value.

use authorize::{Asker, Policy, Sealed};
use compile::{Bundle, RpcList, Source};
use pipe::{Assembler, Decode, Encode, decode_head, encode_head};
use proto::message::{FromFrontend, FromWorker, ToFrontend, ToWorker};
use spawner::plan::{mask_of, workers_of};
use spawner::reloads::Reloads;
use spawner::{Compiled, FromBroker, FromSpawner, Plan};

/// A value has one form, so nothing that was read can be something else to the next reader.
fn one_form<M: Encode + Decode<()>>(data: &[u8]) {
    if let Ok(message) = decode_head::<M>(data) {
        assert_eq!(encode_head(&message).expect("it was small enough to be read"), data);
    }
}

pub(crate) fn from_frontend(data: &[u8]) {
    one_form::<FromFrontend>(data);
}

pub(crate) fn to_frontend(data: &[u8]) {
    one_form::<ToFrontend>(data);
}

pub(crate) fn to_worker(data: &[u8]) {
    one_form::<ToWorker>(data);
}

pub(crate) fn from_worker(data: &[u8]) {
    one_form::<FromWorker>(data);
}

/// The input is a row of frames, each after its length (u16). A peer is stopped at its first fault, as here.
pub(crate) fn frames(data: &[u8]) {
    let mut assembler = Assembler::default();
    for frame in records(data) {
        match assembler.accept::<FromFrontend>(frame) {
            Ok(None) => {}
            Ok(Some(received)) => {
                assert!(received.payload.len() <= proto::limits::PIECE);
                assert!(frame.ends_with(received.payload));
            }
            Err(_) => return,
        }
    }
}

/// Cuts the input at the lengths in it; the last record is what is left.
pub(crate) fn records(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (record, behind) = rest.split_at(length);
        data = behind;
        Some(record)
    })
}

pub(crate) fn spawner_message(data: &[u8]) {
    if let Ok((sequence, message)) = FromBroker::decode(data) {
        assert_eq!(message.encode(sequence)[..], *data);
    }
    if let Ok((sequence, message)) = FromSpawner::decode(data) {
        assert_eq!(message.encode(sequence)[..], *data);
    }
    if let Ok(compiled) = Compiled::decode(data) {
        assert_eq!(compiled.encode()[..], *data);
        if let Some(workers) = workers_of(compiled.workers) {
            assert_eq!(mask_of(&workers), Some(compiled.workers));
        }
    }
    if let Some(reloads) = <&[u8; 16]>::try_from(data).ok().and_then(Reloads::decode) {
        assert_eq!(reloads.encode()[..], *data);
    }
}

pub(crate) fn plan(data: &[u8]) {
    if let Ok(plan) = Plan::decode(data) {
        assert_eq!(plan.encode().expect("it was in range to be read"), data);
    }
}

pub(crate) fn sealed(data: &[u8]) {
    if let Ok(sealed) = Sealed::decode(data) {
        assert_eq!(sealed.build_id, proto::BUILD_ID);
        let again = sealed.encode().expect("it was small enough to be read");
        assert_eq!(Sealed::decode(&again), Ok(sealed));
    }
}

pub(crate) fn policy(data: &[u8]) {
    if let Ok(policy) = Policy::decode(data) {
        let again = policy.encode().expect("it was small enough to be read");
        assert_eq!(Policy::decode(&again).as_ref(), Ok(&policy));
        decides(&policy);
    }
}

/// The input is a policy's text; from the first NUL on, `--allow-rpcs` and `--block-rpcs`.
pub(crate) fn policy_text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let mut list = || -> Vec<RpcList> {
        let origin = || authorize::Origin { place: "--rpcs".into(), line: 0 };
        parts.next().map(|text| RpcList { origin: origin(), text: text.to_owned() }).into_iter().collect()
    };
    let text = list().pop().map(|list| list.text).unwrap_or_default();
    let bundle = Bundle {
        sources: vec![Source::File { name: "policy.toml".to_owned(), text }],
        allow: list(),
        block: list(),
    };
    match compile::compile(&bundle) {
        Ok(compiled) => {
            let encoded = compiled.policy.encode().expect("a text of a few bytes makes a small policy");
            assert_eq!(Policy::decode(&encoded).as_ref(), Ok(&compiled.policy));
            decides(&compiled.policy);
        }
        Err(complaint) => assert!(!complaint.to_string().is_empty()),
    }
}

pub(crate) fn bundle(data: &[u8]) {
    if let Ok(bundle) = Bundle::read(data) {
        let again = bundle.encode().expect("it was small enough to be read");
        assert_eq!(Bundle::read(again.as_slice()).expect("it was read before"), bundle);
        // The compiler's next step; a complaint is as good as a policy.
        let _ = compile::compile(&bundle);
    }
}

/// What is refused here is refused by everyone, and what no rule grants is not permitted.
fn decides(policy: &Policy) {
    for request in super::samples::requests() {
        let group = request.group();
        for channel in ["test", ""] {
            let permitted =
                authorize::authorize(policy, Asker { channel, frozen: false }, request.clone()).is_ok();
            assert!(!permitted || authorize::may_ever(policy, group), "{request:?} was permitted");
        }
    }
}
