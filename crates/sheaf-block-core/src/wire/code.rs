//! The bytes of a frame's body: written, and read from whoever may have sent them.
//!
//! [`Reader`] trusts nothing: every length is held against what is left and against a bound before it is used.

use super::{Body, FrameError, Introduction, Keep, MAX_LIST, Work, Yield};
use crate::disk::{Data, Digest, Failure, Part, Partial};
use crate::ids::{
    BLOCK_BYTES, BlockCount, BlockIndex, CoordinatorId, Epoch, JobId, ReplicaId, ReplicaSet, SegmentIndex,
    Version, VolumeId,
};
use crate::jobs::MAX_JOB_BLOCKS;
use crate::membership::{Answer, Ask, Ledger, Membership, Vote};
use crate::structure::{LayerId, MAX_LAYERS, MAX_NAME, OrderId, SnapshotName};

pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }
    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    pub(super) fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.number);
        self.u64(epoch.holder.0);
    }
    pub(super) fn set(&mut self, set: ReplicaSet) {
        self.0.push(u8::try_from(set.len()).unwrap_or(u8::MAX));
        set.iter().for_each(|id| self.u32(id.0));
    }
    pub(super) fn membership(&mut self, record: Membership) {
        self.u64(record.version.0);
        self.set(record.in_sync);
    }
    pub(super) fn list(&mut self, list: &[SegmentIndex]) {
        debug_assert!(list.len() <= MAX_LIST, "a list is split before it is sent");
        self.u32(u32::try_from(list.len()).unwrap_or(u32::MAX));
        list.iter().for_each(|segment| self.u32(segment.0));
    }
    pub(super) fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Prepare(epoch) => {
                self.0.push(0);
                self.epoch(epoch);
            }
            Ask::Accept { epoch, base, in_sync } => {
                self.0.push(1);
                self.epoch(epoch);
                self.membership(base);
                self.set(in_sync);
            }
            Ask::Learn { epoch, membership } => {
                self.0.push(2);
                self.epoch(epoch);
                self.membership(membership);
            }
        }
    }
    pub(super) fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Promised { epoch, ledger } => {
                self.0.push(0);
                self.epoch(epoch);
                self.epoch(ledger.promised);
                self.membership(ledger.committed);
                self.0.push(u8::from(ledger.accepted.is_some()));
                if let Some(vote) = ledger.accepted {
                    self.epoch(vote.epoch);
                    self.set(vote.in_sync);
                }
            }
            Answer::Accepted { epoch, version } | Answer::Learnt { epoch, version } => {
                self.0.push(if matches!(answer, Answer::Accepted { .. }) { 1 } else { 2 });
                self.epoch(epoch);
                self.u64(version.0);
            }
            Answer::Refused { epoch, promised } => {
                self.0.push(3);
                self.epoch(epoch);
                self.epoch(promised);
            }
        }
    }
    pub(super) fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }
    pub(super) fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(text.as_bytes());
    }
    pub(super) fn order(&mut self, id: OrderId) {
        self.u64(id.number);
        self.u64(id.run.0);
    }
    pub(super) fn maybe_order(&mut self, id: Option<OrderId>) {
        self.flag(id.is_some());
        id.into_iter().for_each(|id| self.order(id));
    }
    pub(super) fn volume(&mut self, id: VolumeId) {
        self.0.extend(id.0.to_le_bytes());
    }
    pub(super) fn part(&mut self, part: &Part) {
        self.u64(part.data);
        self.u64(part.zero);
        if part.bad != 0 {
            self.u64(part.bad);
        }
    }
    /// Writes a body, but for the data that it ends with ([`Body::data`]); returns its kind.
    pub(super) fn body(&mut self, body: &Body) -> u8 {
        match body {
            Body::Ask(ask) => {
                self.ask(**ask);
                1
            }
            Body::Answer(answer, introduction) => {
                self.answer(**answer);
                self.flag(introduction.is_some());
                if let Some(introduction) = introduction {
                    self.flag(introduction.suspect);
                    self.u64(introduction.clean_until.0);
                    self.u64(introduction.forgotten.0);
                    self.structure(&introduction.structure);
                    self.list(&introduction.active);
                }
                2
            }
            Body::Closed => 3,
            Body::Settle { below, all } => {
                self.u64(*below);
                self.flag(*all);
                4
            }
            Body::Forget { upto } => {
                self.u64(upto.0);
                5
            }
            Body::Do(job, work) => {
                self.u64(job.0);
                self.work(work)
            }
            Body::Done(job, result) => {
                self.u64(job.0);
                match result {
                    Ok(what) => self.yields(what),
                    Err(failure) => {
                        self.0.push(match failure {
                            Failure::Io => 1,
                            Failure::NoSpace => 2,
                            Failure::Invalid => 3,
                            Failure::Corrupt => 4,
                            Failure::Shared => 5,
                        });
                        32
                    }
                }
            }
        }
    }
    pub(super) fn work(&mut self, work: &Work) -> u8 {
        match work {
            Work::Write { start, generation, .. } => {
                self.u64(start.0);
                self.u64(*generation);
                8
            }
            Work::Zero { start, count, generation } => {
                self.u64(start.0);
                self.u32(count.0);
                self.u64(*generation);
                9
            }
            Work::Read { start, count } => {
                self.u64(start.0);
                self.u32(count.0);
                10
            }
            Work::Flush { trust } => {
                self.flag(*trust);
                11
            }
            Work::Operate(operation) => {
                self.operation(operation);
                12
            }
            Work::Adopt { structure, known } => {
                self.flag(*known);
                self.structure(structure);
                13
            }
            Work::Dirty { since, from, count } => {
                self.u64(since.0);
                self.u32(from.0);
                self.u32(*count);
                14
            }
            Work::Present { layer, from, count } => {
                self.order(*layer);
                self.u32(from.0);
                self.u32(*count);
                15
            }
            Work::ReadPart { layer, segment } => {
                self.order(*layer);
                self.u32(segment.0);
                16
            }
            Work::WritePart { layer, segment, part, generation } => {
                self.order(*layer);
                self.u32(segment.0);
                self.flag(generation.is_some());
                self.u64(generation.unwrap_or_default());
                self.part(part);
                if part.bad == 0 { 17 } else { 22 }
            }
            Work::Salvage { layer, segment } => {
                self.order(*layer);
                self.u32(segment.0);
                23
            }
            Work::Copied { layer, below } => {
                self.order(*layer);
                self.u32(below.0);
                18
            }
            Work::Fold { layer, segment } => {
                self.order(*layer);
                self.u32(segment.0);
                19
            }
            Work::Digest { layer, segment } => {
                self.order(*layer);
                self.u32(segment.0);
                20
            }
            Work::Seal { layer, segment, checksum } => {
                self.order(*layer);
                self.u32(segment.0);
                self.u32(*checksum);
                21
            }
        }
    }
    pub(super) fn yields(&mut self, what: &Yield) -> u8 {
        match what {
            Yield::Nothing => 33,
            Yield::Data(_) => 34,
            Yield::Part(part) => {
                self.part(part);
                if part.bad == 0 { 35 } else { 39 }
            }
            Yield::Segments(list) => {
                self.list(list);
                36
            }
            Yield::Digest(digest) => {
                self.u32(digest.actual);
                self.flag(digest.sealed.is_some());
                self.u32(digest.sealed.unwrap_or_default());
                if digest.bad == 0 {
                    return 37;
                }
                self.u64(digest.bad);
                self.flag(digest.fresh);
                40
            }
            Yield::Missing(missing) => {
                self.u32(u32::try_from(missing.len()).unwrap_or(u32::MAX));
                for (layer, partial) in missing {
                    self.order(*layer);
                    let below = match partial {
                        Partial::Full { below, .. } => Some(*below),
                        Partial::Dirty { .. } => None,
                    };
                    self.flag(below.is_some());
                    self.u32(below.unwrap_or_default().0);
                    let own: Vec<SegmentIndex> = partial.own().iter().copied().collect();
                    self.list(&own);
                }
                38
            }
        }
    }
}

/// What is left to read, and how blocks among it are kept.
pub(super) struct Reader<'a>(pub(super) &'a [u8], pub(super) Keep);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FrameError::Content)?;
        self.0 = rest;
        Ok(*head)
    }
    pub(super) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn flag(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Content),
        }
    }
    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(super) fn epoch(&mut self) -> Result<Epoch, FrameError> {
        Ok(Epoch { number: self.u64()?, holder: CoordinatorId(self.u64()?) })
    }
    pub(super) fn set(&mut self) -> Result<ReplicaSet, FrameError> {
        let mut set = ReplicaSet::EMPTY;
        for nth in 1..=self.u8()? {
            let id = ReplicaId(self.u32()?);
            let ascends = set.iter().last().is_none_or(|last| last < id);
            set = set.with(id).map_err(|_| FrameError::Content)?;
            if set.len() != usize::from(nth) || !ascends {
                return Err(FrameError::Content);
            }
        }
        Ok(set)
    }
    pub(super) fn membership(&mut self) -> Result<Membership, FrameError> {
        Ok(Membership { version: Version(self.u64()?), in_sync: self.set()? })
    }
    pub(super) fn list(&mut self) -> Result<Vec<SegmentIndex>, FrameError> {
        let count = self.u32()? as usize;
        if count > MAX_LIST || self.0.len() < count * 4 {
            return Err(FrameError::Content);
        }
        let list: Vec<SegmentIndex> =
            (0..count).map(|_| self.u32().map(SegmentIndex)).collect::<Result<_, _>>()?;
        if list.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(FrameError::Content);
        }
        Ok(list)
    }
    pub(super) fn text(&mut self, longest: usize) -> Result<String, FrameError> {
        let len = self.u32()? as usize;
        if len > longest {
            return Err(FrameError::Content);
        }
        let (text, rest) = self.0.split_at_checked(len).ok_or(FrameError::Content)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| FrameError::Content)
    }
    pub(super) fn name(&mut self) -> Result<SnapshotName, FrameError> {
        SnapshotName::new(self.text(MAX_NAME)?).map_err(|_| FrameError::Content)
    }
    pub(super) fn order(&mut self) -> Result<OrderId, FrameError> {
        Ok(OrderId { number: self.u64()?, run: CoordinatorId(self.u64()?) })
    }
    pub(super) fn maybe_order(&mut self) -> Result<Option<OrderId>, FrameError> {
        self.flag()?.then(|| self.order()).transpose()
    }
    pub(super) fn volume(&mut self) -> Result<VolumeId, FrameError> {
        Ok(VolumeId(u128::from_le_bytes(self.array()?)))
    }
    pub(super) fn ask(&mut self) -> Result<Ask, FrameError> {
        let kind = self.u8()?;
        let epoch = self.epoch()?;
        match kind {
            0 => Ok(Ask::Prepare(epoch)),
            1 => Ok(Ask::Accept { epoch, base: self.membership()?, in_sync: self.set()? }),
            2 => Ok(Ask::Learn { epoch, membership: self.membership()? }),
            _ => Err(FrameError::Content),
        }
    }
    pub(super) fn answer(&mut self) -> Result<Answer, FrameError> {
        let kind = self.u8()?;
        let epoch = self.epoch()?;
        Ok(match kind {
            0 => {
                let (promised, committed) = (self.epoch()?, self.membership()?);
                let accepted = self
                    .flag()?
                    .then(|| Ok(Vote { epoch: self.epoch()?, in_sync: self.set()? }))
                    .transpose()?;
                Answer::Promised { epoch, ledger: Ledger { promised, committed, accepted } }
            }
            1 => Answer::Accepted { epoch, version: Version(self.u64()?) },
            2 => Answer::Learnt { epoch, version: Version(self.u64()?) },
            3 => Answer::Refused { epoch, promised: self.epoch()? },
            _ => return Err(FrameError::Content),
        })
    }
    /// The rest: at least one whole block, and not more than a job may have.
    pub(super) fn blocks(&mut self) -> Result<Data, FrameError> {
        let rest = std::mem::take(&mut self.0);
        let whole = !rest.is_empty() && rest.len().is_multiple_of(BLOCK_BYTES as usize);
        if !whole || rest.len() > (MAX_JOB_BLOCKS * BLOCK_BYTES) as usize {
            return Err(FrameError::Content);
        }
        Ok((self.1)(rest))
    }
    /// The rest: what a layer holds of a segment, of which something is damaged or not.
    pub(super) fn part(&mut self, damaged: bool) -> Result<Part, FrameError> {
        let (data, zero) = (self.u64()?, self.u64()?);
        let bad = if damaged { self.u64()? } else { 0 };
        let part = Part { data, zero, bad, bytes: (self.1)(std::mem::take(&mut self.0)) };
        if part.is_sound() && (bad != 0) == damaged { Ok(part) } else { Err(FrameError::Content) }
    }
    pub(super) fn place(&mut self) -> Result<(LayerId, SegmentIndex), FrameError> {
        Ok((self.order()?, SegmentIndex(self.u32()?)))
    }
    /// Reads a body of this kind.
    pub(super) fn body(&mut self, kind: u8) -> Result<Body, FrameError> {
        Ok(match kind {
            1 => Body::Ask(Box::new(self.ask()?)),
            2 => {
                let answer = self.answer()?;
                Body::Answer(Box::new(answer), self.flag()?.then(|| self.introduction()).transpose()?)
            }
            3 => Body::Closed,
            4 => Body::Settle { below: self.u64()?, all: self.flag()? },
            5 => Body::Forget { upto: Version(self.u64()?) },
            8..=23 => Body::Do(JobId(self.u64()?), self.work(kind)?),
            32 => {
                let job = JobId(self.u64()?);
                Body::Done(
                    job,
                    Err(match self.u8()? {
                        1 => Failure::Io,
                        2 => Failure::NoSpace,
                        3 => Failure::Invalid,
                        4 => Failure::Corrupt,
                        5 => Failure::Shared,
                        _ => return Err(FrameError::Content),
                    }),
                )
            }
            33..=40 => Body::Done(JobId(self.u64()?), Ok(self.yields(kind)?)),
            _ => return Err(FrameError::Content),
        })
    }
    pub(super) fn introduction(&mut self) -> Result<Box<Introduction>, FrameError> {
        Ok(Box::new(Introduction {
            suspect: self.flag()?,
            clean_until: Version(self.u64()?),
            forgotten: Version(self.u64()?),
            structure: self.structure()?,
            active: self.list()?,
        }))
    }
    pub(super) fn work(&mut self, kind: u8) -> Result<Work, FrameError> {
        Ok(match kind {
            8 => {
                let (start, generation) = (BlockIndex(self.u64()?), self.u64()?);
                Work::Write { start, generation, data: self.blocks()? }
            }
            9 => {
                let (start, count) = (BlockIndex(self.u64()?), BlockCount(self.u32()?));
                Work::Zero { start, count, generation: self.u64()? }
            }
            10 => Work::Read { start: BlockIndex(self.u64()?), count: BlockCount(self.u32()?) },
            11 => Work::Flush { trust: self.flag()? },
            12 => Work::Operate(self.operation()?),
            13 => {
                let known = self.flag()?;
                Work::Adopt { structure: Box::new(self.structure()?), known }
            }
            14 => Work::Dirty {
                since: Version(self.u64()?),
                from: SegmentIndex(self.u32()?),
                count: self.u32()?,
            },
            15 => {
                let (layer, from) = self.place()?;
                Work::Present { layer, from, count: self.u32()? }
            }
            16 => {
                let (layer, segment) = self.place()?;
                Work::ReadPart { layer, segment }
            }
            17 | 22 => {
                let (layer, segment) = self.place()?;
                let (counts, generation) = (self.flag()?, self.u64()?);
                if !counts && generation != 0 {
                    return Err(FrameError::Content);
                }
                Work::WritePart {
                    layer,
                    segment,
                    generation: counts.then_some(generation),
                    part: self.part(kind == 22)?,
                }
            }
            23 => {
                let (layer, segment) = self.place()?;
                Work::Salvage { layer, segment }
            }
            18 => {
                let (layer, below) = self.place()?;
                Work::Copied { layer, below }
            }
            19 => {
                let (layer, segment) = self.place()?;
                Work::Fold { layer, segment }
            }
            20 => {
                let (layer, segment) = self.place()?;
                Work::Digest { layer, segment }
            }
            21 => {
                let (layer, segment) = self.place()?;
                Work::Seal { layer, segment, checksum: self.u32()? }
            }
            _ => return Err(FrameError::Content),
        })
    }
    pub(super) fn yields(&mut self, kind: u8) -> Result<Yield, FrameError> {
        Ok(match kind {
            33 => Yield::Nothing,
            34 => Yield::Data(self.blocks()?),
            35 | 39 => Yield::Part(self.part(kind == 39)?),
            36 => Yield::Segments(self.list()?),
            37 | 40 => {
                let (actual, known, sealed) = (self.u32()?, self.flag()?, self.u32()?);
                if !known && sealed != 0 {
                    return Err(FrameError::Content);
                }
                let (bad, fresh) = if kind == 40 { (self.u64()?, self.flag()?) } else { (0, false) };
                if (bad != 0) != (kind == 40) {
                    return Err(FrameError::Content);
                }
                Yield::Digest(Digest { actual, sealed: known.then_some(sealed), bad, fresh })
            }
            38 => {
                let count = self.u32()? as usize;
                if count > MAX_LAYERS + 1 {
                    return Err(FrameError::Content);
                }
                let one = |_| {
                    let (layer, full) = (self.order()?, self.flag()?);
                    let below = SegmentIndex(self.u32()?);
                    let own = self.list()?;
                    let ascends = own.is_sorted_by(|one, next| one < next);
                    let own = own.into_iter().collect();
                    if !full && below.0 != 0 || !ascends {
                        return Err(FrameError::Content);
                    }
                    Ok((layer, if full { Partial::Full { below, own } } else { Partial::Dirty { own } }))
                };
                Yield::Missing((0..count).map(one).collect::<Result<_, _>>()?)
            }
            _ => return Err(FrameError::Content),
        })
    }
}
