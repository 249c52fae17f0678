//! Bounds and times of a coordinator: plain numbers, given by the shell.

/// Bounds and times, in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests at a time.
    pub requests: usize,
    /// Segments in the activity log; at half of it, a flush of our own begins.
    pub active_segments: usize,
    /// How long a guest waits at most.
    pub request_deadline: u64,
    /// How long a replica may take for one piece of work before the session is opened anew.
    pub reply_deadline: u64,
    /// How long a replica may be away before its loss is recorded.
    pub grace: u64,
    /// When a question of membership is asked again.
    pub resend: u64,
    /// Pause between two copies of a rebuild while the guest is busy.
    pub rebuild_pause: u64,
    /// Copies at a time of a rebuild while the guest is idle.
    pub rebuild_jobs: usize,
    /// Segments that are listed at a time.
    pub page: u32,
    /// After so many copied segments a rebuild remembers durably how far it is.
    pub progress: u32,
    /// When the guest has changed nothing for so long, the activity logs are emptied.
    pub rest: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 1024,
            active_segments: 4096,
            request_deadline: 60_000_000,
            reply_deadline: 4_000_000,
            grace: 8_000_000,
            resend: 500_000,
            rebuild_pause: 2_000,
            rebuild_jobs: 16,
            page: 4096,
            progress: 1024,
            rest: 1_000_000,
        }
    }
}

impl Limits {
    /// Jobs of a rebuild, or of other work that is not the guest's, at a time.
    pub(super) fn background(&self, busy: bool) -> usize {
        if busy { 1 } else { self.rebuild_jobs.max(1) }
    }
}
