//! Frames: what is written is read back, and whatever is damaged is refused without a panic.

use proptest::prelude::*;
use sheaf_block_core::ids::*;
use sheaf_block_core::membership::{Answer, Ask, Ledger, Membership, Vote};
use sheaf_block_core::wire::{
    Body, Failure, Frame, FrameError, HEADER_BYTES, Header, Introduction, MAX_PAYLOAD,
};

fn set() -> impl Strategy<Value = ReplicaSet> {
    prop::collection::btree_set(any::<u32>(), 0..=MAX_REPLICAS)
        .prop_map(|ids| ReplicaSet::of(ids.into_iter().map(ReplicaId)).expect("at most eight"))
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u64, u64)>().prop_map(|(number, holder)| Epoch { number, holder: CoordinatorId(holder) })
}

fn membership() -> impl Strategy<Value = Membership> {
    (any::<u64>(), set()).prop_map(|(version, in_sync)| Membership { version: Version(version), in_sync })
}

fn body() -> impl Strategy<Value = Body> {
    let job = || any::<u64>().prop_map(JobId);
    let start = || any::<u64>().prop_map(BlockIndex);
    let data = || (1usize..3, any::<u8>()).prop_map(|(n, byte)| vec![byte; n * BLOCK_BYTES as usize].into());
    let list = || prop::collection::vec(any::<u32>().prop_map(SegmentIndex), 0..40);
    let ledger = (epoch(), membership(), prop::option::of((epoch(), set()))).prop_map(
        |(promised, committed, vote)| Ledger {
            promised,
            committed,
            accepted: vote.map(|(epoch, in_sync)| Vote { epoch, in_sync }),
        },
    );
    let failure = prop_oneof![
        Just(Ok(())),
        Just(Err(Failure::Io)),
        Just(Err(Failure::NoSpace)),
        Just(Err(Failure::Invalid))
    ];
    prop_oneof![
        epoch().prop_map(|e| Body::Ask(Ask::Prepare(e))),
        (epoch(), membership(), set()).prop_map(|(epoch, base, in_sync)| Body::Ask(Ask::Accept {
            epoch,
            base,
            in_sync
        })),
        (epoch(), membership()).prop_map(|(epoch, membership)| Body::Ask(Ask::Learn { epoch, membership })),
        (epoch(), ledger, prop::option::of((any::<bool>(), any::<u64>(), list()))).prop_map(
            |(epoch, ledger, intro)| {
                let introduction = intro.map(|(suspect, clean, active)| {
                    Box::new(Introduction { suspect, clean_until: Version(clean), active })
                });
                Body::Answer(Answer::Promised { epoch, ledger }, introduction)
            }
        ),
        (epoch(), any::<u64>())
            .prop_map(|(epoch, v)| Body::Answer(Answer::Accepted { epoch, version: Version(v) }, None)),
        (epoch(), any::<u64>())
            .prop_map(|(epoch, v)| Body::Answer(Answer::Learnt { epoch, version: Version(v) }, None)),
        (epoch(), epoch())
            .prop_map(|(epoch, promised)| Body::Answer(Answer::Refused { epoch, promised }, None)),
        (job(), start(), data(), any::<(u64, bool)>()).prop_map(|(job, start, data, (generation, copy))| {
            Body::Write { job, start, data, generation, copy }
        }),
        (job(), start(), any::<(u32, u64)>()).prop_map(|(job, start, (n, generation))| Body::Zero {
            job,
            start,
            count: BlockCount(n),
            generation
        }),
        (job(), start(), any::<u32>()).prop_map(|(job, start, n)| Body::Read {
            job,
            start,
            count: BlockCount(n)
        }),
        job().prop_map(|job| Body::Flush { job }),
        any::<u64>().prop_map(|below| Body::Settle { below }),
        (job(), any::<u64>(), any::<u32>()).prop_map(|(job, v, from)| Body::ListDirty {
            job,
            since: Version(v),
            from: SegmentIndex(from)
        }),
        (job(), failure).prop_map(|(job, result)| Body::Done { job, result }),
        (job(), data()).prop_map(|(job, data)| Body::Data { job, data }),
        (job(), list()).prop_map(|(job, list)| Body::Segments { job, list }),
        Just(Body::Closed),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    (any::<u128>(), any::<u32>(), epoch(), any::<u64>(), any::<u64>(), body()).prop_map(
        |(v, r, epoch, s, seq, body)| Frame {
            volume: VolumeId(v),
            replica: ReplicaId(r),
            epoch,
            session: SessionId(s),
            seq,
            body,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(frame in frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn a_changed_byte_is_an_error(frame in frame(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = frame.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    #[test]
    fn a_cut_or_longer_frame_is_an_error(frame in frame(), at in any::<prop::sample::Index>(), more in 1usize..9) {
        let mut bytes = frame.encode();
        prop_assert!(Frame::decode(&bytes[..at.index(bytes.len())]).is_err());
        bytes.resize(bytes.len() + more, 0);
        prop_assert!(Frame::decode(&bytes).is_err());
    }

    /// Payloads with right checksums and wrong content: an error or a frame, never a panic, never much memory.
    #[test]
    fn any_payload_is_survived(kind in any::<u8>(), payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let frame = Frame {
            volume: VolumeId(1), replica: ReplicaId(1), epoch: Epoch::default(), session: SessionId(1), seq: 1, body: Body::Closed,
        };
        let mut bytes = frame.encode();
        bytes[6] = kind;
        bytes[60..64].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes[64..68].copy_from_slice(&sheaf_block_core::crc::crc32c(&payload).to_le_bytes());
        let crc = sheaf_block_core::crc::crc32c(&bytes[..68]);
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        bytes.extend(&payload);
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(frame.encode(), bytes, "one meaning has one form");
        }
    }
}

#[test]
fn another_format_and_a_length_beyond_the_limit_are_named() {
    let frame = Frame {
        volume: VolumeId(1),
        replica: ReplicaId(1),
        epoch: Epoch::default(),
        session: SessionId(1),
        seq: 1,
        body: Body::Closed,
    };
    let good: [u8; HEADER_BYTES] = frame.encode().try_into().unwrap();
    let reseal = |mut bytes: [u8; HEADER_BYTES]| {
        let crc = sheaf_block_core::crc::crc32c(&bytes[..68]);
        bytes[68..].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let mut future = good;
    future[4] = 2;
    assert_eq!(Header::decode(&reseal(future)), Err(FrameError::Format(2)));
    let mut long = good;
    long[60..64].copy_from_slice(&(MAX_PAYLOAD + 1).to_le_bytes());
    assert_eq!(Header::decode(&reseal(long)), Err(FrameError::TooLong(MAX_PAYLOAD + 1)));
}
