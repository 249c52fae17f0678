//! Frames: what is written is read back, and whatever is damaged is refused without a panic.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sheaf_block_core::disk::{Data, Partial};
use sheaf_block_core::ids::*;
use sheaf_block_core::membership::{Answer, Ask, Ledger, Membership, Vote};
use sheaf_block_core::structure::{CloneOf, Kind, LayerId, Operation, OrderId, SnapshotName, Structure};
use sheaf_block_core::wire::{
    Body, Digest, Failure, Frame, FrameError, HEADER_BYTES, Header, Introduction, MAX_PAYLOAD, Part, Work,
    Yield,
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

fn order() -> impl Strategy<Value = OrderId> {
    any::<(u64, u64)>().prop_map(|(number, run)| OrderId { number, run: CoordinatorId(run) })
}

fn kind() -> impl Strategy<Value = Kind> {
    let labels = prop::collection::btree_map("[a-z]{0,9}", "\\PC{0,9}", 0..4);
    prop_oneof![
        ("[a-z0-9][a-zA-Z0-9_.-]{0,40}", any::<u64>(), any::<bool>(), labels).prop_map(
            |(name, created, user, labels)| Kind::Snapshot {
                name: SnapshotName::new(name).expect("plain"),
                created,
                user,
                labels
            }
        ),
        order().prop_map(Kind::Revert),
        order().prop_map(Kind::Remove),
        order().prop_map(Kind::Drop),
        any::<u64>().prop_map(Kind::Expand),
        (order(), any::<u128>()).prop_map(|(id, by)| Kind::Pin(id, VolumeId(by))),
        (order(), any::<u128>()).prop_map(|(id, by)| Kind::Unpin(id, VolumeId(by))),
        (order(), any::<u128>(), "[a-z0-9][a-z0-9.-]{0,40}", any::<u64>(), set()).prop_map(
            |(from, volume, name, created, members)| Kind::Clone(Box::new(CloneOf {
                from,
                volume: VolumeId(volume),
                name: SnapshotName::new(name).expect("plain"),
                created,
                members
            }))
        ),
    ]
}

/// What operations make of a new volume; those that name a layer are given one that is there.
fn structure() -> impl Strategy<Value = Structure> {
    let steps = prop::collection::vec((kind(), any::<prop::sample::Index>()), 0..12);
    (steps, prop::option::of(any::<u128>())).prop_map(|(steps, base)| {
        steps.into_iter().fold(Structure::new(100, base.map(VolumeId)), |on, (kind, at)| {
            let layer = on.layers[at.index(on.layers.len())].id;
            let kind = match kind {
                Kind::Revert(_) => Kind::Revert(layer),
                Kind::Remove(_) => Kind::Remove(layer),
                Kind::Drop(_) => Kind::Drop(layer),
                Kind::Pin(_, by) => Kind::Pin(layer, by),
                Kind::Clone(clone) => Kind::Clone(Box::new(CloneOf { from: layer, ..*clone })),
                Kind::Expand(_) => Kind::Expand(on.blocks + 7),
                other => other,
            };
            on.apply(&Operation { id: on.next(CoordinatorId(9)), kind }).unwrap_or(on)
        })
    })
}

fn part() -> impl Strategy<Value = Part> {
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u8>()).prop_map(|(data, zero, bad, byte)| {
        let data = data & 0x8001_0001;
        let zero = zero & !data;
        // Most have no damage.
        let bad = if byte < 64 { bad & !data & !zero } else { 0 };
        let bytes = vec![byte; data.count_ones() as usize * BLOCK_BYTES as usize];
        Part { data, zero, bad, bytes: bytes.into() }
    })
}

fn list() -> impl Strategy<Value = Vec<SegmentIndex>> {
    prop::collection::btree_set(any::<u32>().prop_map(SegmentIndex), 0..40)
        .prop_map(|list| list.into_iter().collect())
}

fn place() -> impl Strategy<Value = (LayerId, SegmentIndex)> {
    (order(), any::<u32>().prop_map(SegmentIndex))
}

fn data() -> impl Strategy<Value = Data> {
    (1usize..3, any::<u8>()).prop_map(|(n, byte)| vec![byte; n * BLOCK_BYTES as usize].into())
}

fn work() -> impl Strategy<Value = Work> {
    let start = || any::<u64>().prop_map(BlockIndex);
    prop_oneof![
        (start(), data(), any::<u64>()).prop_map(|(start, data, generation)| Work::Write {
            start,
            data,
            generation
        }),
        (start(), any::<(u32, u64)>()).prop_map(|(start, (n, generation))| Work::Zero {
            start,
            count: BlockCount(n),
            generation
        }),
        (start(), any::<u32>()).prop_map(|(start, n)| Work::Read { start, count: BlockCount(n) }),
        any::<bool>().prop_map(|trust| Work::Flush { trust }),
        (order(), kind()).prop_map(|(id, kind)| Work::Operate(Operation { id, kind })),
        (structure(), any::<bool>())
            .prop_map(|(structure, known)| Work::Adopt { structure: Box::new(structure), known }),
        any::<(u64, u32, u32)>().prop_map(|(v, from, count)| Work::Dirty {
            since: Version(v),
            from: SegmentIndex(from),
            count
        }),
        (place(), any::<u32>()).prop_map(|((layer, from), count)| Work::Present { layer, from, count }),
        place().prop_map(|(layer, segment)| Work::ReadPart { layer, segment }),
        place().prop_map(|(layer, segment)| Work::Salvage { layer, segment }),
        (place(), part(), prop::option::of(any::<u64>())).prop_map(|((layer, segment), part, generation)| {
            Work::WritePart { layer, segment, part, generation }
        }),
        place().prop_map(|(layer, below)| Work::Copied { layer, below }),
        place().prop_map(|(layer, segment)| Work::Fold { layer, segment }),
        place().prop_map(|(layer, segment)| Work::Digest { layer, segment }),
        (place(), any::<u32>()).prop_map(|((layer, segment), checksum)| Work::Seal {
            layer,
            segment,
            checksum
        }),
    ]
}

fn yields() -> impl Strategy<Value = Yield> {
    let partial = (any::<bool>(), any::<u32>(), list()).prop_map(|(full, below, own)| {
        let own = own.into_iter().collect();
        if full { Partial::Full { below: SegmentIndex(below), own } } else { Partial::Dirty { own } }
    });
    prop_oneof![
        Just(Yield::Nothing),
        data().prop_map(Yield::Data),
        part().prop_map(Yield::Part),
        list().prop_map(Yield::Segments),
        (any::<u32>(), prop::option::of(any::<u32>()), 0u64..3, any::<bool>()).prop_map(
            |(actual, sealed, bad, fresh)| Yield::Digest(Digest {
                actual,
                sealed,
                bad,
                fresh: fresh && bad != 0
            })
        ),
        prop::collection::vec((order(), partial), 0..4).prop_map(Yield::Missing),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let job = || any::<u64>().prop_map(JobId);
    let ledger = (epoch(), membership(), prop::option::of((epoch(), set()))).prop_map(
        |(promised, committed, vote)| Ledger {
            promised,
            committed,
            accepted: vote.map(|(epoch, in_sync)| Vote { epoch, in_sync }),
        },
    );
    let failure = prop_oneof![
        Just(Failure::Io),
        Just(Failure::NoSpace),
        Just(Failure::Invalid),
        Just(Failure::Shared),
        Just(Failure::Corrupt)
    ];
    let introduction = (any::<(bool, u64, u64)>(), structure(), list()).prop_map(
        |((suspect, clean, forgotten), structure, active)| {
            let (clean_until, forgotten) = (Version(clean), Version(forgotten));
            Box::new(Introduction { suspect, clean_until, forgotten, structure, active })
        },
    );
    prop_oneof![
        epoch().prop_map(|e| Body::Ask(Box::new(Ask::Prepare(e)))),
        (epoch(), membership(), set()).prop_map(|(epoch, base, in_sync)| Body::Ask(Box::new(Ask::Accept {
            epoch,
            base,
            in_sync
        }))),
        (epoch(), membership())
            .prop_map(|(epoch, membership)| Body::Ask(Box::new(Ask::Learn { epoch, membership }))),
        (epoch(), ledger, prop::option::of(introduction)).prop_map(|(epoch, ledger, introduction)| {
            Body::Answer(Box::new(Answer::Promised { epoch, ledger }), introduction)
        }),
        (epoch(), any::<u64>()).prop_map(|(epoch, v)| Body::Answer(
            Box::new(Answer::Accepted { epoch, version: Version(v) }),
            None
        )),
        (epoch(), any::<u64>()).prop_map(|(epoch, v)| Body::Answer(
            Box::new(Answer::Learnt { epoch, version: Version(v) }),
            None
        )),
        (epoch(), epoch())
            .prop_map(|(epoch, promised)| Body::Answer(Box::new(Answer::Refused { epoch, promised }), None)),
        (job(), work()).prop_map(|(job, work)| Body::Do(job, work)),
        (job(), yields()).prop_map(|(job, what)| Body::Done(job, Ok(what))),
        (job(), failure).prop_map(|(job, failure)| Body::Done(job, Err(failure))),
        any::<(u64, bool)>().prop_map(|(below, all)| Body::Settle { below, all }),
        any::<u64>().prop_map(|upto| Body::Forget { upto: Version(upto) }),
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

/// Found by fuzzing: a set whose members do not ascend was taken for the same set in order, so that two frames meant the same.
#[test]
fn a_set_has_one_spelling() {
    use sheaf_block_core::crc::crc32c;
    let in_sync = ReplicaSet::of([ReplicaId(1), ReplicaId(2)]).unwrap();
    let membership = Membership { version: Version(3), in_sync };
    let ask = Ask::Learn { epoch: Epoch::default(), membership };
    let frame = Frame {
        volume: VolumeId(1),
        replica: ReplicaId(1),
        epoch: Epoch::default(),
        session: SessionId(0),
        seq: 0,
        body: Body::Ask(Box::new(ask)),
    };
    let mut bytes = frame.encode();
    assert_eq!(Frame::decode(&bytes), Ok(frame));
    // Which question, epoch, version, how many; then the two.
    let ids = HEADER_BYTES + 1 + 16 + 8 + 1;
    bytes.copy_within(ids..ids + 4, ids + 8 - 4);
    bytes[ids..ids + 4].copy_from_slice(&2u32.to_le_bytes());
    let payload = crc32c(&bytes[HEADER_BYTES..]);
    bytes[64..68].copy_from_slice(&payload.to_le_bytes());
    let header = crc32c(&bytes[..68]);
    bytes[68..72].copy_from_slice(&header.to_le_bytes());
    assert_eq!(Frame::decode(&bytes), Err(FrameError::Content));
}

/// The largest frames that can be: they fit.
#[test]
fn the_largest_frames_fit() {
    use sheaf_block_core::structure::{MAX_LABEL_BYTES, MAX_LAYERS, MAX_NAME, MAX_PINS};
    let mut structure = Structure::new(100, Some(VolumeId(1)));
    for at in 0..MAX_LAYERS {
        let name = SnapshotName::new(format!("{at:0>MAX_NAME$}")).unwrap();
        let labels = BTreeMap::from([("k".to_owned(), "v".repeat(MAX_LABEL_BYTES - 1))]);
        let kind = Kind::Snapshot { name, created: 1, user: true, labels };
        structure = structure.apply(&Operation { id: structure.next(CoordinatorId(1)), kind }).unwrap();
    }
    for layer in structure.layers.iter_mut().filter_map(|layer| layer.snapshot.as_mut()) {
        layer.pins = (0..MAX_PINS as u128).map(VolumeId).collect();
    }
    assert!(structure.is_sound());
    let active = (0..sheaf_block_core::wire::MAX_LIST as u32).map(SegmentIndex).collect();
    let version = Version(1);
    let introduction =
        Introduction { suspect: true, clean_until: version, forgotten: version, structure, active };
    let answer = Answer::Promised { epoch: Epoch::default(), ledger: Ledger::default() };
    let frame = Frame {
        volume: VolumeId(1),
        replica: ReplicaId(1),
        epoch: Epoch::default(),
        session: SessionId(1),
        seq: 1,
        body: Body::Answer(Box::new(answer), Some(Box::new(introduction))),
    };
    let bytes = frame.encode();
    assert!(bytes.len() <= HEADER_BYTES + MAX_PAYLOAD as usize, "{}", bytes.len());
    assert_eq!(Frame::decode(&bytes), Ok(frame));
}
