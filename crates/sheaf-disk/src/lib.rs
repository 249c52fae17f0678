//! Replica directories on a disk.
//!
//! A replica of a volume is a directory of sparse files with the names, metadata and meaning that Longhorn gives them,
//! so that a directory of Longhorn's can be taken over and one of ours given back. What we add lies in files whose
//! names begin with `sheaf-`, which its reader passes over. Decision note 0018 says why, and what each crash leaves.
//!
//! ```text
//! volume.meta                     size, live head, flags                        meta
//! volume-head-NNN.img[.meta]      the writable layer                            replica
//! volume-snap-NAME.img[.meta]     a snapshot's layer; below it its parent       replica
//! volume-snap-NAME.img.checksum   CRC-64 of that layer                          checksum
//! sheaf-state.N, sheaf-log.N      promises, activity log, segment stamps        state
//! sheaf-copy                      all metadata once more                        chain
//! sheaf-intent                    a change of the layers that is being made     layers
//! sheaf-seal.*                    checksums of a layer's segments               layers
//! sheaf-sums.*                    checksums of the blocks of those              sums
//! sheaf-boot                      the run of the machine in which it was opened   names
//! sheaf-lock                      held while a process has the directory open   real
//! ```
//!
//! **A block is where an extent is.** The topmost layer that has storage for a block has it; a hole shows the layer
//! below. So zeros above a layer that has data are written as zeros, and only where nothing is below they are holes.
//!
//! - [`fs`]: what is needed of a file system; [`real`] the kernel's, [`sim`] a twin that forgets what was not synced.
//! - [`names`], [`meta`], [`envelope`], [`crc64`]: formats, pure.
//! - [`chain`]: what the files of a directory mean together, pure.
//! - [`map`]: which layer has a block, in bounded memory.
//! - [`replica`]: an open directory; `shape` changes its layers. [`layers`]: what a replica's state machine asks of its layers;
//!   [`part`]: what it asks of one layer's part of a segment.
//! - [`base`]: what makes a raw file fit to be the lowest layer of many replicas.
//! - [`checksum`]: Longhorn's checksums of whole layers, in bounded steps.
//! - [`state`]: what the replica's state machine keeps durably.
//! - [`engine`]: asynchronous I/O, by io_uring or threads.
//!
//! What it does not do: sockets, epochs, other replicas (`sheaf-storage`, `sheaf-block-core`); placement.

pub mod base;
pub mod buffer;
pub mod chain;
pub mod checksum;
pub mod crc64;
pub mod engine;
pub mod envelope;
pub mod fs;
pub mod layers;
pub mod map;
pub mod meta;
pub mod names;
pub mod part;
pub mod real;
pub mod replica;
mod shape;
pub mod sim;
pub mod state;
pub mod sums;
