//! The audit log's file: lines are taken without waiting, and written by a thread of its own.
//!
//! What does not fit into the queue is lost, counted, and said, since no request may wait for a disk that is full or slow.
//! Owns the file and those that it was rotated into.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

/// Lines that wait to be written.
const QUEUE: usize = 16 * 1024;
/// Bytes of them.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// Lines are written together up to so much.
const BATCH: usize = 1024 * 1024;
/// Trouble is told of at most so often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Where the log is, and what is kept of it.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Bytes from which on a file is put aside.
    pub max_bytes: u64,
    /// Days for which files that were put aside are kept; 0 for ever.
    pub max_age_days: u32,
    /// How many are kept; 0 means all.
    pub max_backups: usize,
}

/// The way into the log.
pub(super) struct Log {
    lines: Option<SyncSender<Vec<u8>>>,
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl Log {
    /// Opens the file, and starts the thread.
    pub(super) fn open(options: LogOptions) -> io::Result<Self> {
        let file = Target::open(options)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let (waiting, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let (w, l) = (waiting.clone(), lost.clone());
        let writer = std::thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || write_all(file, &receiver, &w, &l))?;
        Ok(Self { lines: Some(sender), waiting, lost, writer: Some(writer) })
    }

    /// Takes a line (without its end). Never waits.
    pub(super) fn put(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        let bytes = line.len();
        let full = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUE_BYTES;
        let taken = !full && self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok());
        if !taken {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Log {
    /// What was taken is written before the server ends.
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write_all(mut target: Target, lines: &Receiver<Vec<u8>>, waiting: &AtomicUsize, lost: &AtomicU64) {
    let mut said: Option<Instant> = None;
    while let Ok(mut batch) = lines.recv() {
        let mut count = 1;
        while batch.len() < BATCH {
            let Ok(line) = lines.try_recv() else { break };
            batch.extend_from_slice(&line);
            count += 1;
        }
        let written = target.write(&batch, Timestamp::now());
        waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let may_say = said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if let Err(error) = written {
            lost.fetch_add(count, Ordering::Relaxed);
            if may_say {
                tracing::error!(file = %target.options.path.display(), %error, "the audit log cannot be written");
            }
        }
        if may_say {
            let missing = lost.swap(0, Ordering::Relaxed);
            if missing > 0 {
                said = Some(Instant::now());
                tracing::error!(events = missing, "audit events were lost: the log could not keep up");
            }
        }
    }
}

/// The file that is written to.
struct Target {
    options: LogOptions,
    /// `None` for standard output.
    file: Option<fs::File>,
    bytes: u64,
}

impl Target {
    fn open(options: LogOptions) -> io::Result<Self> {
        let mut target = Self { options, file: None, bytes: 0 };
        if target.options.path != Path::new("-") {
            target.reopen()?;
        }
        Ok(target)
    }

    fn reopen(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        if let Some(dir) = self.options.path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&self.options.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        if self.options.path == Path::new("-") {
            return io::stdout().lock().write_all(bytes);
        }
        let more = bytes.len() as u64;
        if self.file.is_none() {
            // A rotation that failed half-way.
            self.reopen()?;
        }
        if self.bytes > 0 && self.bytes + more > self.options.max_bytes {
            self.rotate(now)?;
        }
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("the audit log is not open"))?;
        file.write_all(bytes)?;
        self.bytes += more;
        Ok(())
    }

    /// Puts the file aside under a name with the time, begins a new one, and removes what is too old or too much.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        self.file = None;
        let mut aside = aside(&self.options.path, now);
        let mut at = now;
        while aside.exists() {
            at = at.saturating_add(SignedDuration::from_millis(1)).unwrap_or(at);
            aside = self::aside(&self.options.path, at);
        }
        fs::rename(&self.options.path, &aside)?;
        self.reopen()?;
        for path in too_many(&self.options, &backups(&self.options.path), now) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "an old audit log cannot be removed");
            }
        }
        Ok(())
    }
}

const FORMAT: &str = "%Y-%m-%dT%H-%M-%S.%3f";

fn stem_and_ending(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ending = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    (stem, ending)
}

/// `audit-2026-01-02T03-04-05.678.log`.
fn aside(path: &Path, at: Timestamp) -> PathBuf {
    let (stem, ending) = stem_and_ending(path);
    path.with_file_name(format!("{stem}-{}{ending}", at.strftime(FORMAT)))
}

/// Files that were put aside, newest first, with their times.
fn backups(path: &Path) -> Vec<(PathBuf, Timestamp)> {
    let (stem, ending) = stem_and_ending(path);
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(PathBuf, Timestamp)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let time = name.strip_prefix(&format!("{stem}-"))?.strip_suffix(&ending)?;
            let at = jiff::civil::DateTime::strptime(FORMAT, time).ok()?;
            Some((entry.path(), at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()))
        })
        .collect();
    found.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    found
}

/// Those that are not kept.
fn too_many(options: &LogOptions, backups: &[(PathBuf, Timestamp)], now: Timestamp) -> Vec<PathBuf> {
    let age = SignedDuration::from_hours(24 * i64::from(options.max_age_days));
    let many = |i: usize| options.max_backups > 0 && i >= options.max_backups;
    let old = |at: Timestamp| options.max_age_days > 0 && now.duration_since(at) > age;
    let gone = backups.iter().enumerate().filter(|(i, (_, at))| many(*i) || old(*at));
    gone.map(|(_, (path, _))| path.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> LogOptions {
        LogOptions { path: dir.join("audit.log"), max_bytes: 100, max_age_days: 7, max_backups: 2 }
    }

    #[test]
    fn files_are_put_aside_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target::open(options(dir.path())).unwrap();
        let start: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        for i in 0..5 {
            let now = start + SignedDuration::from_secs(i);
            target.write(format!("{i}{}\n", "x".repeat(60)).as_bytes(), now).unwrap();
        }
        let names: Vec<String> = backups(&dir.path().join("audit.log"))
            .iter()
            .map(|(p, _)| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["audit-2026-01-02T03-04-09.678.log", "audit-2026-01-02T03-04-08.678.log"]);
        let now = fs::read_to_string(dir.path().join("audit.log")).unwrap();
        assert!(now.starts_with('4'), "{now}");

        let late = start + SignedDuration::from_hours(24 * 8);
        let left = backups(&dir.path().join("audit.log"));
        assert_eq!(too_many(&options(dir.path()), &left, late).len(), 2, "a week is over");
        let endless = LogOptions { max_age_days: 0, max_backups: 0, ..options(dir.path()) };
        assert_eq!(too_many(&endless, &left, late), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_was_taken_is_written_before_the_end_and_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let log = Log::open(LogOptions { max_bytes: 1 << 20, ..options(dir.path()) }).unwrap();
            (0..100).for_each(|i| log.put(format!("{round} {i}").into_bytes()));
        }
        let text = fs::read_to_string(dir.path().join("audit.log")).unwrap();
        assert_eq!(text.lines().count(), 200);
    }

    #[test]
    fn a_log_that_cannot_be_written_holds_nobody_up() {
        let (sender, receiver) = sync_channel(1);
        let (waiting, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let log = Log { lines: Some(sender), waiting: waiting.clone(), lost: lost.clone(), writer: None };
        (0..10).for_each(|_| log.put(b"x".to_vec()));
        assert_eq!((lost.load(Ordering::Relaxed), waiting.load(Ordering::Relaxed)), (9, 2));
        log.put(vec![b'x'; QUEUE_BYTES + 1]);
        assert_eq!(lost.load(Ordering::Relaxed), 10);
        drop(receiver);
    }
}
