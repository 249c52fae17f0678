//! Gives back memory that is not needed: what the allocator keeps for requests that may come, and, once after the start, the program's own
//! code that only the start ran. The kernel would take both under pressure; on a small machine there should be none.
//!
//! It frees nothing that anybody owns, and owns nothing itself.
#![allow(unsafe_code, reason = "madvise, and the allocator's own call, are in no safe crate")]

use std::time::Duration;

use rustix::mm::Advice;

/// The start is over by then.
const STARTED: Duration = Duration::from_secs(10);
/// Between two looks. A look costs nothing where nothing was freed.
const PAUSE: Duration = Duration::from_secs(30);

/// Keeps this process's memory small, for ever.
pub(crate) async fn keep_small() {
    tokio::time::sleep(STARTED).await;
    give_back_code();
    loop {
        // SAFETY: it may be called at any time from any thread; it frees only what nobody has.
        unsafe { libmimalloc_sys::mi_collect(true) };
        tokio::time::sleep(PAUSE).await;
    }
}

fn give_back_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    for (start, bytes) in code_of(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a private mapping of the program's file that is executable and was never writable, as the kernel says, so none
        // of its pages can differ from the file's: the next touch of one brings back the same bytes.
        let done = unsafe { rustix::mm::madvise(start as *mut _, bytes, Advice::LinuxDontNeed) };
        if let Err(error) = done {
            tracing::debug!(%error, "code that is not used stays in memory");
        }
    }
}

/// Where the program's code lies, from the text of `/proc/PID/maps` (proc(5)): addresses and bytes.
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        // After these: offset, device, inode. A path may have blanks in it.
        let path = line.get(line.find('/')?..)?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (rights == "r-xp" && path == program && start < end).then_some((start, end - start))
    });
    code.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8a00000-55d0c8b23000 r--p 00000000 fe:00 264 /usr/bin/sheaf
55d0c8b23000-55d0c9f00000 r-xp 00122000 fe:00 264 /usr/bin/sheaf
55d0c9f00000-55d0ca100000 r--p 01500000 fe:00 264 /usr/bin/sheaf
55d0ca100000-55d0ca101000 rw-p 01700000 fe:00 264 /usr/bin/sheaf
7f1c00000000-7f1c00021000 rw-p 00000000 00:00 0
7f1c04a26000-7f1c04b7c000 r-xp 00026000 fe:00 991 /lib/x86_64-linux-gnu/libc.so.6
7ffe3a5f2000-7ffe3a5f4000 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn finds_the_programs_own_code_only() {
        assert_eq!(code_of(MAPS, "/usr/bin/sheaf"), [(0x55d0_c8b2_3000, 0x13d_d000)]);
        assert_eq!(code_of(MAPS, "/usr/bin/other"), []);
        assert_eq!(code_of("broken\nxx-yy r-xp 0 0 0 /usr/bin/sheaf\n", "/usr/bin/sheaf"), []);
    }

    /// How much of the program's code is in memory, of how much, in KiB, as `/proc/self/smaps` says (proc(5)).
    fn resident() -> (u64, u64) {
        let program = std::env::current_exe().expect("a program has a file");
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the kernel tells");
        let code = smaps.lines().skip_while(|line| code_of(line, &program.to_string_lossy()).is_empty());
        let of = |name: &str| {
            let line = code.clone().find_map(|line| line.strip_prefix(name)).expect("a line of each mapping");
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        (of("Rss:"), of("Size:"))
    }

    #[test]
    fn the_program_goes_on_without_its_code() {
        let program = std::env::current_exe().expect("a program has a file");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel tells");
        // The whole of it, so that what the test itself brings back with each step does not matter.
        for (start, bytes) in code_of(&maps, &program.to_string_lossy()) {
            // SAFETY: it only reads pages of the program's own file into a mapping that is there.
            unsafe { rustix::mm::madvise(start as *mut _, bytes, Advice::LinuxPopulateRead) }
                .expect("code can be read");
        }
        let (before, all) = resident();
        assert_eq!(before, all);
        give_back_code();
        let (after, _) = resident();
        assert!(after < before / 2, "{before} kB, then {after} kB");
    }
}
