//! The bytes of layers and of operations on them, as in [`super::code`], to which they belong.

use std::collections::BTreeMap;

use super::FrameError;
use super::code::{Reader, Writer};
use crate::structure::{
    CloneOf, Kind, Layer, MAX_LABEL_BYTES, MAX_LABELS, MAX_LAYERS, MAX_PINS, Operation, Snapshot, Structure,
};

impl Writer {
    pub(super) fn labels(&mut self, labels: &BTreeMap<String, String>) {
        self.0.push(u8::try_from(labels.len()).unwrap_or(u8::MAX));
        for (key, value) in labels {
            self.text(key);
            self.text(value);
        }
    }
    pub(super) fn operation(&mut self, operation: &Operation) {
        self.order(operation.id);
        match &operation.kind {
            Kind::Snapshot { name, created, user, labels } => {
                self.0.push(0);
                self.text(name.as_str());
                self.u64(*created);
                self.flag(*user);
                self.labels(labels);
            }
            Kind::Revert(id) => {
                self.0.push(1);
                self.order(*id);
            }
            Kind::Remove(id) => {
                self.0.push(2);
                self.order(*id);
            }
            Kind::Drop(id) => {
                self.0.push(3);
                self.order(*id);
            }
            Kind::Expand(blocks) => {
                self.0.push(4);
                self.u64(*blocks);
            }
            Kind::Pin(id, by) | Kind::Unpin(id, by) => {
                self.0.push(if matches!(operation.kind, Kind::Pin(..)) { 5 } else { 6 });
                self.order(*id);
                self.volume(*by);
            }
            Kind::Clone(clone) => {
                self.0.push(7);
                self.order(clone.from);
                self.volume(clone.volume);
                self.text(clone.name.as_str());
                self.u64(clone.created);
                self.set(clone.members);
            }
        }
    }
    pub(super) fn structure(&mut self, structure: &Structure) {
        self.order(structure.at);
        self.u64(structure.blocks);
        self.flag(structure.base.is_some());
        structure.base.into_iter().for_each(|base| self.volume(base));
        self.order(structure.head);
        self.u32(u32::try_from(structure.layers.len()).unwrap_or(u32::MAX));
        for layer in &structure.layers {
            self.order(layer.id);
            self.maybe_order(layer.parent);
            self.maybe_order(layer.folded);
            self.flag(layer.snapshot.is_some());
            if let Some(snapshot) = &layer.snapshot {
                self.text(snapshot.name.as_str());
                self.u64(snapshot.created);
                self.flag(snapshot.user);
                self.labels(&snapshot.labels);
                self.flag(snapshot.removed);
                self.0.push(u8::try_from(snapshot.pins.len()).unwrap_or(u8::MAX));
                snapshot.pins.iter().for_each(|pin| self.volume(*pin));
                self.order(snapshot.frozen);
            }
        }
        self.flag(structure.last.is_some());
        structure.last.iter().for_each(|last| self.operation(last));
    }
}

impl Reader<'_> {
    pub(super) fn labels(&mut self) -> Result<BTreeMap<String, String>, FrameError> {
        let count = usize::from(self.u8()?);
        let mut labels = BTreeMap::new();
        let mut bytes = 0;
        for _ in 0..count {
            let (key, value) = (self.text(MAX_LABEL_BYTES)?, self.text(MAX_LABEL_BYTES)?);
            bytes += key.len() + value.len();
            if labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(FrameError::Content);
            }
            labels.insert(key, value);
        }
        if count > MAX_LABELS || bytes > MAX_LABEL_BYTES {
            return Err(FrameError::Content);
        }
        Ok(labels)
    }
    pub(super) fn operation(&mut self) -> Result<Operation, FrameError> {
        let id = self.order()?;
        let kind = match self.u8()? {
            0 => Kind::Snapshot {
                name: self.name()?,
                created: self.u64()?,
                user: self.flag()?,
                labels: self.labels()?,
            },
            1 => Kind::Revert(self.order()?),
            2 => Kind::Remove(self.order()?),
            3 => Kind::Drop(self.order()?),
            4 => Kind::Expand(self.u64()?),
            5 => Kind::Pin(self.order()?, self.volume()?),
            6 => Kind::Unpin(self.order()?, self.volume()?),
            7 => {
                let (from, volume, name) = (self.order()?, self.volume()?, self.name()?);
                Kind::Clone(Box::new(CloneOf {
                    from,
                    volume,
                    name,
                    created: self.u64()?,
                    members: self.set()?,
                }))
            }
            _ => return Err(FrameError::Content),
        };
        Ok(Operation { id, kind })
    }
    pub(super) fn structure(&mut self) -> Result<Structure, FrameError> {
        let (at, blocks) = (self.order()?, self.u64()?);
        let base = self.flag()?.then(|| self.volume()).transpose()?;
        let head = self.order()?;
        let count = self.u32()? as usize;
        if count > MAX_LAYERS + 1 {
            return Err(FrameError::Content);
        }
        let layers = (0..count).map(|_| self.layer()).collect::<Result<_, _>>()?;
        let last = self.flag()?.then(|| self.operation()).transpose()?;
        let structure = Structure { at, blocks, base, head, layers, last };
        if structure.is_sound() { Ok(structure) } else { Err(FrameError::Content) }
    }
    pub(super) fn layer(&mut self) -> Result<Layer, FrameError> {
        let (id, parent, folded) = (self.order()?, self.maybe_order()?, self.maybe_order()?);
        let snapshot = self.flag()?.then(|| self.snapshot()).transpose()?;
        Ok(Layer { id, parent, folded, snapshot })
    }
    pub(super) fn snapshot(&mut self) -> Result<Snapshot, FrameError> {
        let (name, created, user) = (self.name()?, self.u64()?, self.flag()?);
        let (labels, removed) = (self.labels()?, self.flag()?);
        let count = usize::from(self.u8()?);
        if count > MAX_PINS {
            return Err(FrameError::Content);
        }
        let pins = (0..count).map(|_| self.volume()).collect::<Result<_, _>>()?;
        Ok(Snapshot { name, created, user, labels, removed, pins, frozen: self.order()? })
    }
}
