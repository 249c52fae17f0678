//! Writes a small ISO 9660 image with Rock Ridge and Joliet names: cloud-init's disk. Pure; bytes out.
//!
//! Directories and small files, all in memory. The plain ISO names are numbers, as every system that reads such a
//! disk knows one of the extensions: Linux takes Rock Ridge, Windows Joliet. Format: ECMA-119, IEEE P1281/P1282, and
//! Microsoft's Joliet specification. The same input gives the same bytes.

use std::collections::BTreeMap;

const SECTOR: usize = 2048;
/// Where the first directory lies: after the system area, three descriptors, and four path tables.
const FIRST_EXTENT: usize = 16 + 3 + 4;
/// 2000-01-01, as every date in the image.
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
/// The largest image that is made; real ones have a few KiB.
pub(super) const IMAGE_MAX: usize = 16 << 20;

/// The content does not fit an image of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum IsoError {
    #[error("the files are larger than {} MiB together", IMAGE_MAX >> 20)]
    TooLarge,
    #[error("the file name {0:?} is not between 1 and 60 characters long")]
    Name(String),
    #[error("a directory has more files than fit")]
    Crowded,
}

#[derive(Default)]
struct Dir {
    dirs: BTreeMap<String, usize>,
    files: BTreeMap<String, usize>,
    parent: usize,
}

/// Which of the two trees.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    RockRidge,
    Joliet,
}

struct Extents {
    dirs: Vec<(usize, usize)>,
    files: Vec<usize>,
}

/// An image with these files (paths with `/`), labelled `label` (at most 16 characters).
pub(super) fn image(label: &str, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, IsoError> {
    let total: usize = files.iter().map(|(_, data)| data.len() + SECTOR).sum();
    if total > IMAGE_MAX {
        return Err(IsoError::TooLarge);
    }
    let dirs = directories(files)?;
    let mut next = FIRST_EXTENT;
    let mut place = |bytes: usize| {
        let at = next;
        next += bytes.div_ceil(SECTOR).max(1);
        at
    };
    let blank = Extents { dirs: vec![(0, 0); dirs.len()], files: vec![0; files.len()] };
    // The size of a directory does not depend on where things lie, so it is rendered twice.
    let size = |tree, d| render(&dirs, d, tree, &blank, files).len();
    let sized = |tree| (0..dirs.len()).map(|d| size(tree, d)).collect::<Vec<_>>();
    let (rock, joliet) = (sized(Tree::RockRidge), sized(Tree::Joliet));
    let rock_dirs: Vec<_> = rock.iter().map(|len| (place(*len), *len)).collect();
    let joliet_dirs: Vec<_> = joliet.iter().map(|len| (place(*len), *len)).collect();
    let file_extents: Vec<usize> = files.iter().map(|(_, data)| place(data.len())).collect();
    let sectors = next;

    let mut out = vec![0; sectors * SECTOR];
    for (tree, tree_dirs, descriptor, tables) in
        [(Tree::RockRidge, rock_dirs, 16, 19), (Tree::Joliet, joliet_dirs, 17, 21)]
    {
        let extents = Extents { dirs: tree_dirs, files: file_extents.clone() };
        let little = path_table(&dirs, tree, &extents, false);
        let big = path_table(&dirs, tree, &extents, true);
        if little.len() > SECTOR {
            return Err(IsoError::Crowded);
        }
        put(&mut out, descriptor, &volume(tree, label, sectors, little.len(), tables, &extents));
        put(&mut out, tables, &little);
        put(&mut out, tables + 1, &big);
        for d in 0..dirs.len() {
            put(&mut out, extents.dirs[d].0, &render(&dirs, d, tree, &extents, files));
        }
    }
    put(&mut out, 18, b"\xffCD001\x01");
    for ((_, data), extent) in files.iter().zip(&file_extents) {
        put(&mut out, *extent, data);
    }
    Ok(out)
}

fn put(out: &mut [u8], sector: usize, bytes: &[u8]) {
    out[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

fn directories(files: &[(String, Vec<u8>)]) -> Result<Vec<Dir>, IsoError> {
    let mut dirs = vec![Dir::default()];
    for (index, (path, _)) in files.iter().enumerate() {
        let mut at = 0;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in folder.split('/').filter(|p| !p.is_empty()).chain([name]) {
            if part.is_empty() || part.chars().count() > 60 || part.len() > 120 {
                return Err(IsoError::Name(part.into()));
            }
        }
        for part in folder.split('/').filter(|p| !p.is_empty()) {
            at = match dirs[at].dirs.get(part) {
                Some(there) => *there,
                None => {
                    let new = dirs.len();
                    dirs[at].dirs.insert(part.into(), new);
                    dirs.push(Dir { parent: at, ..Dir::default() });
                    new
                }
            };
        }
        dirs[at].files.insert(name.into(), index);
    }
    Ok(dirs)
}

/// Both byte orders, as ISO 9660 likes its numbers.
fn both32(n: usize) -> [u8; 8] {
    let n = u32::try_from(n).unwrap_or(u32::MAX);
    let mut out = [0; 8];
    out[..4].copy_from_slice(&n.to_le_bytes());
    out[4..].copy_from_slice(&n.to_be_bytes());
    out
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn identifier(tree: Tree, name: &str, number: usize, dir: bool) -> Vec<u8> {
    match tree {
        Tree::Joliet => utf16(name),
        Tree::RockRidge if dir => format!("DIR{number:05}").into_bytes(),
        Tree::RockRidge => format!("FILE{number:04}.DAT;1").into_bytes(),
    }
}

/// A directory record. `system` is what Rock Ridge adds.
fn record(id: &[u8], extent: usize, len: usize, dir: bool, system: &[u8]) -> Vec<u8> {
    let mut r = vec![0, 0];
    r.extend(both32(extent));
    r.extend(both32(len));
    r.extend(DATE);
    r.extend([if dir { 2 } else { 0 }, 0, 0, 1, 0, 0, 1]);
    r.push(u8::try_from(id.len()).unwrap_or(u8::MAX));
    r.extend(id);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r.extend(system);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r[0] = u8::try_from(r.len()).unwrap_or(u8::MAX);
    r
}

/// POSIX attributes: readable by the guest's root only, as the disk may hold secrets.
fn posix(dir: bool) -> Vec<u8> {
    let mut px = b"PX\x24\x01".to_vec();
    for field in [if dir { 0o040_500 } else { 0o100_400 }, if dir { 2 } else { 1 }, 0, 0] {
        px.extend(both32(field));
    }
    px
}

fn name_entry(name: &str) -> Vec<u8> {
    let mut nm = b"NM\0\x01\0".to_vec();
    nm.extend(name.as_bytes());
    nm[2] = u8::try_from(nm.len()).unwrap_or(u8::MAX);
    nm
}

fn render(dirs: &[Dir], d: usize, tree: Tree, at: &Extents, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let rock = |dir: bool, name: Option<&str>| match tree {
        Tree::Joliet => Vec::new(),
        Tree::RockRidge => {
            let mut s = posix(dir);
            s.extend(name.map(name_entry).unwrap_or_default());
            s
        }
    };
    let (own, parent) = (at.dirs[d], at.dirs[dirs[d].parent]);
    let mut first = rock(true, None);
    if d == 0 && tree == Tree::RockRidge {
        // Says that the extension is in use at all.
        first.splice(0..0, *b"SP\x07\x01\xbe\xef\0");
    }
    let mut records = vec![
        record(&[0], own.0, own.1, true, &first),
        record(&[1], parent.0, parent.1, true, &rock(true, None)),
    ];
    let mut named: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, child) in &dirs[d].dirs {
        let id = identifier(tree, name, *child, true);
        let (extent, len) = at.dirs[*child];
        named.push((id.clone(), record(&id, extent, len, true, &rock(true, Some(name)))));
    }
    for (name, file) in &dirs[d].files {
        let id = identifier(tree, name, *file, false);
        let len = files[*file].1.len();
        named.push((id.clone(), record(&id, at.files[*file], len, false, &rock(false, Some(name)))));
    }
    named.sort();
    records.extend(named.into_iter().map(|(_, r)| r));
    // A record does not cross the border of a sector.
    let mut out = Vec::new();
    for r in records {
        if out.len() % SECTOR + r.len() > SECTOR {
            out.resize(out.len().next_multiple_of(SECTOR), 0);
        }
        out.extend(r);
    }
    out.resize(out.len().next_multiple_of(SECTOR), 0);
    out
}

fn path_table(dirs: &[Dir], tree: Tree, at: &Extents, big: bool) -> Vec<u8> {
    // In order of depth: a parent comes before its children, which is how `dirs` is made for one depth at a time.
    let mut order = vec![(0, vec![0], 1)];
    let mut i = 0;
    while i < order.len() {
        let (d, _, _) = order[i];
        let mut children: Vec<_> =
            dirs[d].dirs.iter().map(|(name, c)| (*c, identifier(tree, name, *c, true), i + 1)).collect();
        children.sort_by(|a, b| a.1.cmp(&b.1));
        order.extend(children);
        i += 1;
    }
    let mut out = Vec::new();
    for (d, id, parent) in order {
        let extent = u32::try_from(at.dirs[d].0).unwrap_or(u32::MAX);
        let parent = u16::try_from(parent).unwrap_or(u16::MAX);
        out.extend([u8::try_from(id.len()).unwrap_or(u8::MAX), 0]);
        out.extend(if big { extent.to_be_bytes() } else { extent.to_le_bytes() });
        out.extend(if big { parent.to_be_bytes() } else { parent.to_le_bytes() });
        out.extend(&id);
        if id.len() % 2 == 1 {
            out.push(0);
        }
    }
    out
}

fn volume(tree: Tree, label: &str, sectors: usize, table_len: usize, tables: usize, at: &Extents) -> Vec<u8> {
    let joliet = tree == Tree::Joliet;
    let mut v = vec![0; SECTOR];
    v[0] = if joliet { 2 } else { 1 };
    v[1..7].copy_from_slice(b"CD001\x01");
    let blank = |v: &mut [u8], text: &str| {
        let text = if joliet { utf16(text) } else { text.as_bytes().to_vec() };
        for (i, byte) in v.iter_mut().enumerate() {
            let space = if joliet && i % 2 == 0 { 0 } else { b' ' };
            *byte = text.get(i).copied().unwrap_or(space);
        }
    };
    blank(&mut v[8..40], "");
    blank(&mut v[40..72], label);
    v[80..88].copy_from_slice(&both32(sectors));
    if joliet {
        v[88..91].copy_from_slice(b"%/E");
    }
    for at in [120, 124] {
        v[at..at + 4].copy_from_slice(&[1, 0, 0, 1]);
    }
    v[128..132].copy_from_slice(&[0, 8, 8, 0]);
    v[132..140].copy_from_slice(&both32(table_len));
    let table = u32::try_from(tables).unwrap_or(u32::MAX);
    v[140..144].copy_from_slice(&table.to_le_bytes());
    v[148..152].copy_from_slice(&(table + 1).to_be_bytes());
    let root = record(&[0], at.dirs[0].0, at.dirs[0].1, true, &[]);
    v[156..190].copy_from_slice(&root);
    for (from, to) in [(190, 318), (318, 446), (446, 574), (574, 702), (702, 739), (739, 776), (776, 813)] {
        blank(&mut v[from..to], "");
    }
    for date in 0..4 {
        v[813 + date * 17..][..16].fill(b'0');
    }
    v[881] = 1;
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<(String, Vec<u8>)> {
        vec![
            ("meta-data".into(), b"instance-id: x\n".to_vec()),
            ("user-data".into(), vec![b'u'; 5000]),
            ("openstack/latest/meta_data.json".into(), b"{}".to_vec()),
        ]
    }

    /// A second, independent look at the structure: follows the primary tree by Rock Ridge names.
    fn read(image: &[u8], extent: usize, len: usize, prefix: &str, out: &mut Vec<(String, Vec<u8>)>) {
        let le = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
        let dir = &image[extent * SECTOR..][..len];
        let mut at = 0;
        while at < len {
            let size = dir[at] as usize;
            if size == 0 {
                at = (at + 1).next_multiple_of(SECTOR);
                continue;
            }
            let r = &dir[at..at + size];
            at += size;
            let (child, bytes, flags, id_len) = (le(&r[2..]), le(&r[10..]), r[25], r[32] as usize);
            if id_len == 1 && r[33] <= 1 {
                continue;
            }
            let mut su = 33 + id_len + (id_len + 1) % 2;
            let mut name = String::new();
            while su + 4 <= r.len() {
                let l = r[su + 2] as usize;
                if &r[su..su + 2] == b"NM" {
                    name = String::from_utf8_lossy(&r[su + 5..su + l]).into_owned();
                }
                su += l.max(4);
            }
            let path = format!("{prefix}{name}");
            if flags & 2 != 0 {
                read(image, child, bytes, &format!("{path}/"), out);
            } else {
                out.push((path, image[child * SECTOR..][..bytes].to_vec()));
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let image = image("cidata", &sample()).expect("image");
        assert_eq!(&image[32808..32814], b"cidata", "where tools look for the label");
        assert_eq!(image.len() % SECTOR, 0);
        let root = &image[16 * SECTOR + 156..];
        let le = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize;
        let mut found = Vec::new();
        read(&image, le(&root[2..]), le(&root[10..]), "", &mut found);
        let mut want = sample();
        want.sort();
        found.sort();
        assert_eq!(found, want);
    }

    #[test]
    fn bounds() {
        let big = vec![("a".to_string(), vec![0; IMAGE_MAX])];
        assert_eq!(image("x", &big), Err(IsoError::TooLarge));
        assert!(matches!(image("x", &[("a//".into(), vec![])]), Err(IsoError::Name(_))));
        let many: Vec<_> = (0..200).map(|i| (format!("file-number-{i}"), vec![1])).collect();
        assert!(image("x", &many).is_ok(), "a directory may have several sectors");
    }
}
