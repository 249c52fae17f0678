//! What a directory's files mean together: the live chain, what an interruption left behind, and what mends it.
//!
//! [`plan_open`] is pure: a [`Listing`] in, [`Opened`] or a reason out. It never guesses: where two readings of the
//! files are possible and nothing durable tells which is right, it refuses and says what is missing. What it wants
//! mended is harmless to lose by the rules of decision note 0018; [`crate::replica`] carries it out.

use std::collections::{BTreeMap, BTreeSet};

use crate::envelope::{EnvelopeError, Reader, put_text, seal, unseal};
use crate::fs::Stat;
use crate::meta::{ImageMeta, MetaError, VolumeMeta};
use crate::names;

/// A copy of `volume.meta` and of every layer's metadata, in case they are lost.
pub const COPY_FILE: &str = "sheaf-copy";
const COPY_MAGIC: [u8; 8] = *b"SHEAFcpy";
const VERSION: u32 = 1;

/// Everything that the metadata files say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tree {
    /// `volume.meta`.
    pub volume: VolumeMeta,
    /// By file name of the layer; the live head is among them.
    pub images: BTreeMap<String, ImageMeta>,
}

impl Tree {
    /// The bytes of the copy.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_text(&mut body, &String::from_utf8_lossy(&self.volume.encode()));
        body.extend(u32::try_from(self.images.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (name, meta) in &self.images {
            put_text(&mut body, name);
            put_text(&mut body, &String::from_utf8_lossy(&meta.encode()));
        }
        seal(COPY_MAGIC, VERSION, &body)
    }

    /// Reads the copy.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let (_, body) = unseal(COPY_MAGIC, VERSION, bytes)?;
        let mut r = Reader(body);
        let bad = |_| EnvelopeError::Content;
        let volume = VolumeMeta::decode(r.text()?.as_bytes()).map_err(bad)?;
        let mut images = BTreeMap::new();
        for _ in 0..r.u32()? {
            let name = r.text()?;
            let meta = ImageMeta::decode(r.text()?.as_bytes()).map_err(bad)?;
            if !names::is_image(&name) {
                return Err(EnvelopeError::Content);
            }
            images.insert(name, meta);
        }
        Ok(Self { volume, images })
    }

    /// Layers that name `image` as the one below them.
    pub fn children<'a>(&'a self, image: &'a str) -> impl Iterator<Item = &'a str> {
        self.images.iter().filter(move |(_, meta)| meta.parent == image).map(|(name, _)| name.as_str())
    }

    /// From `image` down to the lowest layer, `image` first.
    pub fn ancestry(&self, image: &str) -> Result<Vec<String>, String> {
        let mut chain = vec![image.to_owned()];
        let mut seen = BTreeSet::from([image.to_owned()]);
        let mut at = image.to_owned();
        loop {
            let Some(meta) = self.images.get(&at) else {
                return Err(format!(
                    "layer {at} has no metadata ({}), so what lies below it is not known",
                    names::meta_of(&at)
                ));
            };
            if meta.parent.is_empty() {
                return Ok(chain);
            }
            at = meta.parent.clone();
            if !seen.insert(at.clone()) {
                return Err(format!("the layers below {image} form a circle at {at}"));
            }
            chain.push(at.clone());
            if chain.len() > names::CHAIN_MAX {
                return Err(format!("the chain has more than {} layers", names::CHAIN_MAX));
            }
        }
    }
}

/// What is in a directory, read but not judged.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// `volume.meta`; none: there is none.
    pub volume: Option<Result<VolumeMeta, MetaError>>,
    /// Our copy, if it is whole.
    pub copy: Option<Tree>,
    /// Files of layers.
    pub images: BTreeMap<String, Stat>,
    /// Metadata of layers, by the layer's name.
    pub metas: BTreeMap<String, Result<ImageMeta, MetaError>>,
    /// Checksum records, by the layer's name.
    pub checksums: BTreeSet<String>,
    /// Files never put in their place.
    pub temporary: Vec<String>,
    /// A file of an unfinished restore.
    pub restore: Option<String>,
}

/// Something to do before the directory is as it should be. In this order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mend {
    /// Make the layer as long as the volume; only if nothing is behind that.
    Resize(String),
    /// Write the layer's metadata.
    WriteImage(String),
    /// Write `volume.meta`.
    WriteVolume,
    /// Take a name away.
    Unlink(String),
}

/// How a directory can be opened.
#[derive(Clone, PartialEq, Debug)]
pub struct Opened {
    /// Volume and layers.
    pub tree: Tree,
    /// The live chain, the lowest layer first, the head last.
    pub chain: Vec<String>,
    /// What is to be mended.
    pub mends: Vec<Mend>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Decides how to open a directory, or why it cannot be.
pub fn plan_open(listing: &Listing) -> Result<Opened, String> {
    if let Some(file) = &listing.restore {
        return Err(format!("{file} is part of a restore that has not ended; finish or delete it first"));
    }
    let mut plan = Plan { listing, mends: BTreeSet::new(), notes: Vec::new() };
    let (mut volume, certain) = plan.volume()?;
    if !volume.error.is_empty() {
        return Err(format!("volume.meta carries the error {:?}", volume.error));
    }
    let mut images = plan.metas(&volume)?;
    let stray: Vec<String> = listing
        .images
        .keys()
        .filter(|name| names::head_number(name).is_some() && **name != volume.head)
        .cloned()
        .collect();
    for head in stray {
        if !certain && !plan.is_twin_of_snapshot(&head) {
            return Err(format!(
                "volume.meta is lost and both {} and {head} may be the head; put volume.meta back or move one of them away",
                volume.head
            ));
        }
        plan.notes.push(format!("{head} is left of an interrupted operation"));
        plan.forget(&head);
        images.remove(&head);
    }
    let tree = Tree { volume: volume.clone(), images };
    let mut chain = tree.ancestry(&volume.head)?;
    for name in &chain {
        if !listing.images.contains_key(name) {
            return Err(format!("layer {name} of the live chain is missing; the replica cannot be read"));
        }
    }
    let mut tree = tree;
    plan.half_made(&mut tree, &chain);
    plan.without_image(&mut tree, &chain);
    let parent = chain.get(1).cloned().unwrap_or_default();
    if volume.parent != parent {
        volume.parent = parent;
        plan.mends.insert(Mend::WriteVolume);
    }
    if let Some(stat) = listing.images.get(&volume.head).filter(|stat| stat.bytes != volume.size) {
        let way = if stat.bytes < volume.size { "shorter" } else { "longer" };
        plan.notes.push(format!("{} was {way} than the volume", volume.head));
        plan.mends.insert(Mend::Resize(volume.head.clone()));
    }
    if let Some((name, stat)) = chain
        .iter()
        .skip(1)
        .filter_map(|name| Some((name, listing.images.get(name)?)))
        .find(|(_, stat)| stat.bytes > volume.size)
    {
        return Err(format!("layer {name} has {} bytes, the volume only {}", stat.bytes, volume.size));
    }
    plan.mends.extend(listing.temporary.iter().cloned().map(Mend::Unlink));
    tree.volume = volume;
    chain.reverse();
    let Plan { mends, notes, .. } = plan;
    Ok(Opened { tree, chain, mends: mends.into_iter().collect(), notes })
}

struct Plan<'a> {
    listing: &'a Listing,
    mends: BTreeSet<Mend>,
    notes: Vec<String>,
}

impl Plan<'_> {
    /// `volume.meta`, from wherever it is certain. False: made up from the only head there is.
    fn volume(&mut self) -> Result<(VolumeMeta, bool), String> {
        let why = match &self.listing.volume {
            Some(Ok(volume)) => return Ok((volume.clone(), true)),
            Some(Err(error)) => error.to_string(),
            None => "the file is missing".into(),
        };
        self.mends.insert(Mend::WriteVolume);
        if let Some(copy) = &self.listing.copy {
            if !self.listing.images.contains_key(&copy.volume.head) {
                return Err(format!(
                    "volume.meta: {why}; and the head that the copy names, {}, is missing",
                    copy.volume.head
                ));
            }
            self.notes.push(format!("volume.meta: {why}; restored from the copy in {COPY_FILE}"));
            return Ok((VolumeMeta { dirty: true, ..copy.volume.clone() }, true));
        }
        if !matches!(self.listing.volume, None | Some(Err(MetaError::Empty))) {
            return Err(format!("volume.meta: {why}"));
        }
        let heads = self.listing.images.iter().filter(|(name, _)| names::head_number(name).is_some());
        // The old head of an interrupted snapshot is the same file as the snapshot.
        let mut heads: Vec<_> = heads.filter(|(name, _)| !self.is_twin_of_snapshot(name)).collect();
        let Some((head, stat)) = heads.pop() else {
            return Err(format!("volume.meta: {why}; and there is no head to make it from"));
        };
        if let Some((other, _)) = heads.pop() {
            return Err(format!(
                "volume.meta: {why}; and both {head} and {other} may be the head; put volume.meta back"
            ));
        }
        let parent = match self.listing.metas.get(head) {
            Some(Ok(meta)) => meta.parent.clone(),
            _ => return Err(format!("volume.meta: {why}; and {} is lost too", names::meta_of(head))),
        };
        self.notes.push(format!("volume.meta: {why}; made again from {head}"));
        let volume = VolumeMeta {
            size: stat.bytes,
            head: head.clone(),
            dirty: true,
            parent,
            sector_size: 512,
            ..VolumeMeta::default()
        };
        if volume.size == 0 {
            return Err(format!("volume.meta: {why}; and {head} is empty, so the size is not known"));
        }
        Ok((volume, false))
    }

    fn is_twin_of_snapshot(&self, head: &str) -> bool {
        let Some(stat) = self.listing.images.get(head) else { return false };
        let twin =
            |(name, other): (&String, &Stat)| other.inode == stat.inode && names::snapshot_of(name).is_some();
        self.listing.images.iter().any(twin)
    }

    /// Metadata of all layers that have any, from the files or from the copy.
    fn metas(&mut self, volume: &VolumeMeta) -> Result<BTreeMap<String, ImageMeta>, String> {
        let listing = self.listing;
        let mut found = BTreeMap::new();
        let all: BTreeSet<&String> = listing.metas.keys().chain(listing.images.keys()).collect();
        for name in all {
            let why = match listing.metas.get(name) {
                Some(Ok(meta)) => {
                    found.insert(name.clone(), meta.clone());
                    continue;
                }
                Some(Err(error)) => error.to_string(),
                None => "the file is missing".into(),
            };
            let meta = names::meta_of(name);
            let copied = listing.copy.as_ref().and_then(|copy| copy.images.get(name));
            if let Some(copied) = copied {
                self.notes.push(format!("{meta}: {why}; restored from the copy in {COPY_FILE}"));
                self.mends.insert(Mend::WriteImage(name.clone()));
                found.insert(name.clone(), copied.clone());
            } else if *name == volume.head && matches!(listing.volume, Some(Ok(_))) {
                self.notes.push(format!("{meta}: {why}; made again from volume.meta"));
                self.mends.insert(Mend::WriteImage(name.clone()));
                let made =
                    ImageMeta { name: name.clone(), parent: volume.parent.clone(), ..ImageMeta::default() };
                found.insert(name.clone(), made);
            } else if names::head_number(name).is_none() {
                // Not in the way unless the chain needs it: then `ancestry` says so.
                self.notes.push(format!("{meta}: {why}"));
            }
        }
        Ok(found)
    }

    /// A snapshot that is the same file as the live head: it was not made yet.
    fn half_made(&mut self, tree: &mut Tree, chain: &[String]) {
        let head = self.listing.images.get(&tree.volume.head).map(|stat| stat.inode);
        for (name, stat) in &self.listing.images {
            if Some(stat.inode) == head && *name != tree.volume.head && !chain.contains(name) {
                self.notes.push(format!("snapshot {name} was not made: it was interrupted"));
                self.forget(name);
                tree.images.remove(name);
            }
        }
    }

    /// Metadata of layers that are not there.
    fn without_image(&mut self, tree: &mut Tree, chain: &[String]) {
        let orphans: Vec<String> =
            tree.images.keys().filter(|name| !self.listing.images.contains_key(*name)).cloned().collect();
        for name in orphans {
            let needed = tree.images.iter().any(|(child, meta)| {
                meta.parent == name && self.listing.images.contains_key(child) && !chain.contains(child)
            });
            if needed {
                self.notes.push(format!("snapshot layer {name} is missing; those above it cannot be read"));
            } else {
                self.mends.remove(&Mend::WriteImage(name.clone()));
                self.forget(&name);
            }
            tree.images.remove(&name);
        }
    }

    /// Takes a layer's names away.
    fn forget(&mut self, image: &str) {
        for name in [image.to_owned(), names::meta_of(image), names::checksum_of(image)] {
            let there = self.listing.images.contains_key(&name)
                || name.strip_suffix(".meta").is_some_and(|of| self.listing.metas.contains_key(of))
                || name.strip_suffix(".checksum").is_some_and(|of| self.listing.checksums.contains(of));
            if there {
                self.mends.insert(Mend::Unlink(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(inode: u64) -> Stat {
        Stat { inode, links: 1, bytes: 8192, ..Stat::default() }
    }

    fn meta(parent: &str) -> Result<ImageMeta, MetaError> {
        Ok(ImageMeta { parent: parent.into(), ..ImageMeta::default() })
    }

    const HEAD0: &str = "volume-head-000.img";
    const HEAD1: &str = "volume-head-001.img";
    const S1: &str = "volume-snap-s1.img";
    const S2: &str = "volume-snap-s2.img";

    /// head-001 over s2 over s1.
    fn good() -> Listing {
        let volume = VolumeMeta {
            size: 8192,
            head: HEAD1.into(),
            parent: S2.into(),
            sector_size: 512,
            ..VolumeMeta::default()
        };
        Listing {
            volume: Some(Ok(volume)),
            images: [(HEAD1, stat(3)), (S2, stat(2)), (S1, stat(1))].map(|(n, s)| (n.to_owned(), s)).into(),
            metas: [(HEAD1, meta(S2)), (S2, meta(S1)), (S1, meta(""))].map(|(n, m)| (n.to_owned(), m)).into(),
            ..Listing::default()
        }
    }

    fn opened(listing: &Listing) -> Opened {
        plan_open(listing).expect("opens")
    }

    fn refused(listing: &Listing) -> String {
        plan_open(listing).expect_err("is refused")
    }

    #[test]
    fn a_whole_directory_opens_as_it_is() {
        let plan = opened(&good());
        assert_eq!(plan.chain, [S1, S2, HEAD1]);
        assert!(plan.mends.is_empty() && plan.notes.is_empty(), "{plan:?}");
    }

    #[test]
    fn an_interrupted_snapshot_is_before_or_after() {
        // Before the commit: the old head lives, the new one and the snapshot's names go.
        let mut before = good();
        before.images.insert("volume-head-002.img".into(), stat(9));
        before.metas.insert("volume-head-002.img".into(), meta("volume-snap-s3.img"));
        before.images.insert("volume-snap-s3.img".into(), stat(3));
        before.metas.insert("volume-snap-s3.img".into(), meta(S2));
        let plan = opened(&before);
        assert_eq!(plan.chain, [S1, S2, HEAD1]);
        let gone = [
            "volume-head-002.img",
            "volume-head-002.img.meta",
            "volume-snap-s3.img",
            "volume-snap-s3.img.meta",
        ];
        assert_eq!(plan.mends, gone.map(|name| Mend::Unlink(name.into())));
        // After it: the old head's name goes.
        let mut after = good();
        after.images.insert(HEAD0.into(), stat(2));
        after.metas.insert(HEAD0.into(), meta(S1));
        assert_eq!(opened(&after).mends, [HEAD0, "volume-head-000.img.meta"].map(|n| Mend::Unlink(n.into())));
    }

    #[test]
    fn lost_metadata_is_restored_only_where_it_is_certain() {
        // volume.meta empty, one head: made again, as Longhorn does.
        let mut lost = good();
        lost.volume = Some(Err(MetaError::Empty));
        let plan = opened(&lost);
        assert_eq!((plan.tree.volume.head.as_str(), plan.tree.volume.size), (HEAD1, 8192));
        assert_eq!(plan.mends, [Mend::WriteVolume]);
        // Two heads, one of them the snapshot's own file: the other (Longhorn takes the first and loses writes).
        lost.images.insert(HEAD0.into(), stat(2));
        lost.metas.insert(HEAD0.into(), meta(S1));
        assert_eq!(opened(&lost).tree.volume.head, HEAD1);
        // Two heads that may both be it.
        lost.images.insert(HEAD0.into(), stat(7));
        assert!(refused(&lost).contains("both"), "{}", refused(&lost));
        // With the copy there is no question.
        lost.copy = Some(opened(&good()).tree);
        assert_eq!(opened(&lost).tree.volume.head, HEAD1);
        // Text that is not JSON is not a lost file.
        let mut broken = good();
        broken.volume = Some(Err(MetaError::Json("x".into())));
        assert!(refused(&broken).contains("not a JSON object"));
        // A snapshot's metadata: only from the copy.
        let mut lost = good();
        lost.metas.remove(S2);
        assert!(refused(&lost).contains("volume-snap-s2.img.meta"), "{}", refused(&lost));
        lost.copy = Some(opened(&good()).tree);
        assert_eq!(opened(&lost).mends, [Mend::WriteImage(S2.into())]);
        // The head's: volume.meta says it.
        let mut lost = good();
        lost.metas.insert(HEAD1.into(), Err(MetaError::Empty));
        assert_eq!(opened(&lost).mends, [Mend::WriteImage(HEAD1.into())]);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let mut missing = good();
        missing.images.remove(S1);
        assert!(refused(&missing).contains("layer volume-snap-s1.img of the live chain is missing"));
        let mut circle = good();
        circle.metas.insert(S1.into(), meta(S2));
        assert!(refused(&circle).contains("circle"));
        let mut restore = good();
        restore.restore = Some("volume-snap-s1.img.snap_tmp".into());
        assert!(refused(&restore).contains("restore"));
        let mut longer = good();
        longer.images.insert(S1.into(), Stat { bytes: 16384, ..stat(1) });
        assert!(refused(&longer).contains("16384"));
        let mut error = good();
        if let Some(Ok(volume)) = &mut error.volume {
            volume.error = "broken".into();
        }
        assert!(refused(&error).contains("broken"));
    }

    #[test]
    fn the_copy_survives_its_bytes() {
        let tree = opened(&good()).tree;
        assert_eq!(Tree::decode(&tree.encode()).expect("whole"), tree);
    }
}
