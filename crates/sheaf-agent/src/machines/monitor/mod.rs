//! A running machine: one task that owns it, fed by QMP's events, the process's end, and requests.
//!
//! The task publishes what it sees ([`Seen`]) on a watch, and that is all others know. It decides nothing about
//! whether a machine should run; it carries out what [`super::requests`] lets through. The process is left alone when
//! the task ends with the agent: the next agent adopts it.

mod failing;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use sheaf_qemu::process::{self, Exit, Process};
use sheaf_qemu::qga::Qga;
use sheaf_qemu::qmp::{Event, Happening, Qmp, QmpError, RunState};
use sheaf_qemu::spec::{Files, MachineSpec};
use sheaf_runtime::TaskGroup;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::ends::{Retry, end_of};
use super::guest::{Guest, set_time, watch_guest};
use super::live::limited;
use super::requests::{Ask, Denied, Requests, Standing};
pub use super::seen::{End, Pause, Run, Seen};

/// QEMU answers its first question within this.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// A QEMU that ran before this agent did and does not answer is tried again after this.
const TALK_AGAIN: Duration = Duration::from_secs(5);
/// How often is looked whether QEMU has read what was saved.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The power button is pressed again after this.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// A QEMU that was told to quit is killed after this.
const QUIT_DEADLINE: Duration = Duration::from_secs(5);
/// How often logs are looked after.
const LOGS_PERIOD: Duration = Duration::from_secs(20);
/// Seconds between two reports of the guest's balloon driver, as upstream has it.
const BALLOON_PERIOD: u32 = 10;
/// Requests that wait for the task.
const REQUESTS_MAX: usize = 16;

struct Message {
    ask: Ask,
    /// For [`Ask::PowerDown`]: seconds until force is used.
    grace: u64,
    reply: oneshot::Sender<Result<(), Denied>>,
}

/// A handle to a running machine. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    messages: mpsc::Sender<Message>,
    seen: watch::Receiver<Seen>,
    process: Arc<Process>,
    qga: Arc<Qga>,
    qmp: watch::Receiver<Option<Qmp>>,
    /// Somebody has frozen the guest's file systems.
    frozen: Arc<std::sync::atomic::AtomicBool>,
    notify: Arc<dyn Fn() + Send + Sync>,
    /// The guest stands still for a moment while it is saved: nobody is to notice, and nobody to interfere.
    held: Arc<std::sync::atomic::AtomicBool>,
    /// How it ends, if it was ended from outside of its task.
    doom: Arc<Mutex<Option<End>>>,
    /// What the machine is now; written by whoever changes it.
    spec: Arc<RwLock<Arc<MachineSpec>>>,
}

impl Machine {
    /// What is seen now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }
    /// Changes when what is seen does.
    pub fn changes(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }
    /// What was started, with all changes since.
    pub fn spec(&self) -> Arc<MachineSpec> {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// It was changed.
    pub(super) fn changed(&self, spec: MachineSpec) {
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(spec);
    }
    /// Whether its guest's file systems are frozen, as far as this agent knows.
    pub fn frozen(&self) -> bool {
        self.frozen.load(std::sync::atomic::Ordering::Relaxed)
    }
    pub(super) fn set_frozen(&self, frozen: bool) {
        if self.frozen.swap(frozen, std::sync::atomic::Ordering::Relaxed) != frozen {
            (self.notify)();
        }
    }
    /// Notes that the guest is held while it is saved, or not any more.
    pub fn hold(&self, held: bool) {
        self.held.store(held, std::sync::atomic::Ordering::Relaxed);
    }
    /// Ends it at once, for this reason.
    pub fn doom(&self, why: String) {
        self.kill(End::Crashed(why));
    }
    fn kill(&self, end: End) {
        self.doom.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        if let Err(error) = self.process.kill() {
            warn!(machine = self.spec().name, %error, "cannot end the process");
        }
    }
    /// Whether it is over.
    pub fn ended(&self) -> bool {
        matches!(self.seen.borrow().run, Run::Ended(_))
    }
    /// Its files.
    pub fn files(&self) -> Files {
        Files(self.spec().dir.clone())
    }
    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }
    /// Its guest agent.
    pub fn guest_agent(&self) -> &Arc<Qga> {
        &self.qga
    }
    /// Its control connection, once there is one.
    pub fn qmp(&self) -> Option<Qmp> {
        self.qmp.borrow().clone()
    }
    /// Memory that the process holds, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes().unwrap_or(0)
    }
    /// Asks for something; answers when it is taken in, not when it is done.
    pub async fn ask(&self, ask: Ask) -> Result<(), Denied> {
        self.send(ask, 0).await
    }
    /// Asks the guest to power off, and ends it by force after `grace` seconds. Asked again with less time, the less
    /// counts. Without any it is ended at once, whatever its task waits for: QEMU may not answer.
    pub async fn power_down(&self, grace: u64) -> Result<(), Denied> {
        if grace == 0 && !self.ended() {
            self.kill(End::Forced { grace });
        }
        self.send(Ask::PowerDown, grace).await
    }
    async fn send(&self, ask: Ask, grace: u64) -> Result<(), Denied> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message { ask, grace, reply }).await.map_err(|_| Denied::Ended)?;
        answer.await.map_err(|_| Denied::Ended)?
    }
}

/// How the task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// A process that was just started.
    Fresh {
        /// The guest stays paused.
        paused: bool,
    },
    /// One that ran before this agent did.
    Adopted {
        /// If its guest has not begun yet, it stays so.
        paused: bool,
    },
}

/// Starts the task of a machine. `changed` is called whenever what is seen changes.
pub(super) fn watch_machine(
    spec: MachineSpec,
    process: Process,
    begin: Begin,
    group: &TaskGroup,
    changed: impl Fn() + Send + Sync + 'static,
) -> Machine {
    let (messages, inbox) = mpsc::channel(REQUESTS_MAX);
    let first = Seen {
        run: Run::Starting,
        stopping: None,
        guest: Guest::default(),
        machine_type: String::new(),
        memory_plugged: 0,
    };
    let (seen_tx, seen) = watch::channel(first);
    let (qmp_tx, qmp) = watch::channel(None);
    let spec = Arc::new(spec);
    let process = Arc::new(process);
    let qga = Arc::new(Qga::new(&Files(spec.dir.clone()).guest_agent()));
    let (port, port_rx) = watch::channel(false);
    let (guest_tx, guest) = watch::channel(Guest::default());
    group.spawn(watch_guest(qga.clone(), port_rx, guest_tx));
    let notify: Arc<dyn Fn() + Send + Sync> = Arc::new(changed);
    let doom: Arc<Mutex<Option<End>>> = Arc::default();
    let held: Arc<std::sync::atomic::AtomicBool> = Arc::default();
    let task = Task {
        held: held.clone(),
        doom: doom.clone(),
        spec: spec.clone(),
        dir: spec.dir.clone(),
        process: process.clone(),
        qga: qga.clone(),
        seen: seen_tx,
        qmp_out: qmp_tx,
        changed: notify.clone(),
        requests: Requests::new(),
        port,
        stopping: None,
        rebooting: false,
        end: None,
        retry: Retry::default(),
    };
    group.spawn(task.run(inbox, guest, begin));
    let frozen = Arc::default();
    Machine {
        messages,
        seen,
        process,
        qga,
        qmp,
        frozen,
        notify,
        held,
        doom,
        spec: Arc::new(RwLock::new(spec)),
    }
}

struct Stopping {
    grace: u64,
    deadline: Instant,
    press: Instant,
    forced: bool,
}

struct Task {
    spec: Arc<MachineSpec>,
    dir: PathBuf,
    process: Arc<Process>,
    qga: Arc<Qga>,
    seen: watch::Sender<Seen>,
    qmp_out: watch::Sender<Option<Qmp>>,
    changed: Arc<dyn Fn() + Send + Sync>,
    requests: Requests,
    held: Arc<std::sync::atomic::AtomicBool>,
    doom: Arc<Mutex<Option<End>>>,
    port: watch::Sender<bool>,
    stopping: Option<Stopping>,
    /// The guest was asked to power off in order to start again.
    rebooting: bool,
    /// How it ends, once that is known; the process may still be there.
    end: Option<End>,
    /// When it is let go on although a disk failed.
    retry: Retry,
}

impl Task {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut guest: watch::Receiver<Guest>,
        mut begin: Begin,
    ) {
        let process = self.process.clone();
        let mut logs = tokio::time::interval(LOGS_PERIOD);
        loop {
            let opened = tokio::select! {
                opened = self.open(begin) => opened,
                exit = process.exited() => return self.exited(exit),
            };
            let talked = match opened {
                Ok((qmp, events)) => self.talk(&qmp, events, &mut inbox, &mut guest, &mut logs).await,
                Err(error) => self.unreachable(&error, begin, &mut inbox).await,
            };
            if let Some(exit) = talked {
                return self.exited(exit);
            }
            let (Begin::Fresh { paused } | Begin::Adopted { paused }) = begin;
            begin = Begin::Adopted { paused };
        }
    }

    /// Follows the machine until it ends, or until the connection does (`None`).
    async fn talk(
        &mut self,
        qmp: &Qmp,
        mut events: mpsc::Receiver<Happening>,
        inbox: &mut mpsc::Receiver<Message>,
        guest: &mut watch::Receiver<Guest>,
        logs: &mut tokio::time::Interval,
    ) -> Option<Exit> {
        let process = self.process.clone();
        self.qmp_out.send_replace(Some(qmp.clone()));
        loop {
            while let Some(ask) = self.requests.next() {
                if let Err(error) = self.carry_out(ask, qmp).await {
                    warn!(machine = self.spec.name, %error, ?ask, "a request failed");
                }
            }
            let next = self.stopping.as_ref().filter(|s| !s.forced).map(|s| s.deadline.min(s.press));
            let again = self.retry.at().filter(|_| self.stopping.is_none() && !self.held());
            tokio::select! {
                exit = process.exited() => {
                    self.last_events(&mut events).await;
                    return Some(exit);
                }
                happening = events.recv() => match happening {
                    Some(Happening::Event(event)) => self.on_event(&event, qmp).await,
                    Some(Happening::Lost) => self.look(qmp).await,
                    Some(Happening::Closed) | None => break,
                },
                Some(message) = inbox.recv() => self.on_message(message),
                Ok(()) = guest.changed() => {
                    let fresh = guest.borrow_and_update().clone();
                    self.publish(|s| s.guest = fresh);
                }
                () = at(next) => self.on_time(qmp).await,
                () = at(again) => self.try_again(qmp).await,
                _ = logs.tick() => {
                    let dir = self.dir.clone();
                    tokio::task::spawn_blocking(move || process::trim_logs(&dir));
                }
            }
        }
        // The process's end follows at once, as a rule.
        self.qmp_out.send_replace(None);
        tokio::time::timeout(QUIT_DEADLINE, process.exited()).await.ok()
    }

    /// Connects, and brings a fresh machine to run.
    async fn open(&mut self, begin: Begin) -> Result<(Qmp, mpsc::Receiver<Happening>), QmpError> {
        let deadline = if let Begin::Adopted { .. } = begin {
            TALK_AGAIN
        } else {
            CONNECT_DEADLINE + filling(&self.spec)
        };
        let (qmp, events) = Qmp::connect(&Files(self.dir.clone()).qmp(), deadline).await?;
        self.wait_filled(&qmp).await?;
        process::settle(&self.spec);
        if let Begin::Adopted { .. } = begin {
            let state = qmp.query_status().await?;
            let fresh = state == RunState::Prelaunch
                || state == RunState::Paused && self.spec.rare.incoming.as_deref().is_some_and(Path::exists);
            if !fresh {
                let text = format!("{state:?}");
                self.follow(state, &qmp).await;
                self.retry.found(Instant::now());
                self.port.send_replace(qmp.port_open("qga0").await.unwrap_or(false));
                let machine_type = qmp.machine_type().await.unwrap_or_default();
                self.publish(|s| s.machine_type = machine_type);
                self.look_at_memory(&qmp).await;
                info!(machine = self.spec.name, pid = self.process.pid(), state = text, "adopted");
                return Ok((qmp, events));
            }
        }
        for nic in self.spec.nics.iter().filter(|n| !n.link_up) {
            qmp.set_link(&sheaf_qemu::args::nic_id(&nic.name), false).await?;
        }
        for disk in &self.spec.disks {
            if limited(&disk.tuning.limits) {
                qmp.throttle(&disk.name, &disk.tuning.limits).await?;
            }
            if disk.tuning.tray_open {
                qmp.open_tray(&disk.name).await?;
            }
        }
        if self.spec.balloon {
            qmp.poll_guest_memory(BALLOON_PERIOD).await?;
        }
        self.bind(&qmp).await?;
        // From here on it is not what was saved any more: another start must not begin there.
        if let Some(saved) = &self.spec.rare.incoming {
            let _ = std::fs::remove_file(saved);
        }
        let (Begin::Fresh { paused } | Begin::Adopted { paused }) = begin;
        if paused {
            self.on_state(Run::Paused(Pause::ByUser));
        } else {
            qmp.cont().await?;
            self.on_state(Run::Running);
            if self.spec.rare.incoming.is_some() {
                tokio::spawn(set_time(self.qga.clone()));
            }
        }
        let machine_type = qmp.machine_type().await.unwrap_or_default();
        self.publish(|s| s.machine_type = machine_type);
        Ok((qmp, events))
    }

    /// Waits until QEMU has filled its memory with what was saved.
    async fn wait_filled(&self, qmp: &Qmp) -> Result<(), QmpError> {
        if self.spec.rare.incoming.is_none() {
            return Ok(());
        }
        while qmp.filling().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Gives each of the guest's processors the one of the host that is its own, and QEMU's other threads the last of them
    /// (which no guest's processor runs on, if they are to be apart).
    async fn bind(&self, qmp: &Qmp) -> Result<(), QmpError> {
        let own = &self.spec.rare.pinned;
        let threads = if own.is_empty() { return Ok(()) } else { qmp.cpu_threads().await? };
        let threads: Vec<u32> = threads.iter().map(|t| t.thread).collect();
        let bound = super::allot::bind_machine(self.process.pid(), &threads, own);
        if let Err(error) = bound {
            warn!(machine = self.spec.name, %error, "its processors are not bound");
        }
        Ok(())
    }

    /// The process lives and does not talk. A fresh one is ended, as it has no guest yet; an adopted one is left alone
    /// and tried again, and can be ended by force. `None`: try again.
    async fn unreachable(
        &mut self,
        error: &QmpError,
        begin: Begin,
        inbox: &mut mpsc::Receiver<Message>,
    ) -> Option<Exit> {
        let process = self.process.clone();
        if let Begin::Fresh { .. } = begin {
            // Most likely it is about to end, and says why in its log.
            if let Ok(exit) = tokio::time::timeout(QUIT_DEADLINE, process.exited()).await {
                return Some(exit);
            }
            self.end = Some(End::Crashed(format!("QEMU did not start: {error}")));
            let _ = process.kill();
            return Some(process.exited().await);
        }
        warn!(machine = self.spec.name, %error, "QEMU does not answer; tried again");
        let again = Instant::now() + TALK_AGAIN;
        loop {
            let next = self.stopping.as_ref().filter(|s| !s.forced).map(|s| s.deadline);
            tokio::select! {
                exit = process.exited() => return Some(exit),
                Some(message) = inbox.recv() => self.on_message(message),
                () = at(next) => self.force(),
                () = at(Some(again)) => return None,
            }
            // There is nobody who could ask the guest.
            while self.requests.next().is_some() {}
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Seen)) {
        let changed = self.seen.send_if_modified(|seen| {
            let before = seen.clone();
            change(seen);
            *seen != before
        });
        if changed {
            (self.changed)();
        }
    }

    fn on_state(&mut self, run: Run) {
        self.requests.seen(match &run {
            Run::Starting | Run::Paused(_) => Standing::Paused,
            Run::Running => Standing::Running,
            Run::Ended(_) => Standing::Ended,
        });
        match &run {
            Run::Running => self.retry.runs(Instant::now()),
            Run::Paused(Pause::IoError(_)) => self.retry.failed(Instant::now()),
            _ => self.retry.off(),
        }
        self.publish(|s| s.run = run);
    }

    fn on_message(&mut self, message: Message) {
        let taken = self.requests.ask(message.ask);
        if message.ask == Ask::PowerDown && taken.is_ok() {
            let now = Instant::now();
            let deadline = now + Duration::from_secs(message.grace.min(u64::from(u32::MAX)));
            match &mut self.stopping {
                None => {
                    self.stopping =
                        Some(Stopping { grace: message.grace, deadline, press: now, forced: false });
                }
                Some(s) if deadline < s.deadline => (s.grace, s.deadline) = (message.grace, deadline),
                Some(_) => {}
            }
            let grace = self.stopping.as_ref().map(|s| s.grace);
            self.publish(|s| s.stopping = grace);
        }
        // A machine that stands still for another reason stays so when it is asked to.
        let still = matches!(self.seen.borrow().run, Run::Paused(_));
        if message.ask == Ask::Pause && taken.is_ok() && still {
            self.on_state(Run::Paused(Pause::ByUser));
        }
        let _ = message.reply.send(taken);
    }

    async fn carry_out(&mut self, ask: Ask, qmp: &Qmp) -> Result<(), QmpError> {
        match ask {
            // Asked for again when it has been saved, if it is still wanted.
            Ask::Pause | Ask::Resume if self.held() => {}
            Ask::Pause => {
                qmp.stop().await?;
                self.on_state(Run::Paused(Pause::ByUser));
            }
            Ask::Resume => {
                qmp.cont().await?;
                self.on_state(Run::Running);
                if self.seen.borrow().guest.connected {
                    tokio::spawn(set_time(self.qga.clone()));
                }
            }
            Ask::Reset => qmp.system_reset().await?,
            Ask::SoftReboot => {
                let agent = self.seen.borrow().guest.connected;
                if !agent || self.qga.shutdown("reboot").await.is_err() {
                    // Without an agent: off by the power button, and on again when the guest is off.
                    self.rebooting = true;
                    qmp.system_powerdown().await?;
                }
            }
            // Begun by `on_time`.
            Ask::PowerDown => self.rebooting = false,
        }
        Ok(())
    }

    async fn on_time(&mut self, qmp: &Qmp) {
        let Some(s) = &mut self.stopping else { return };
        let now = Instant::now();
        if now >= s.deadline {
            return self.force();
        }
        if now < s.press {
            return;
        }
        s.press = now + PRESS_AGAIN;
        if self.end.is_some() {
            return;
        }
        let deadline = s.deadline;
        if matches!(self.seen.borrow().run, Run::Paused(_) | Run::Starting) {
            // A guest that is paused cannot hear the button. A QEMU that does not answer holds nothing up.
            let _ = tokio::time::timeout_at(deadline, qmp.cont()).await;
        }
        let (agent, qga) = (self.seen.borrow().guest.connected, self.qga.clone());
        if agent {
            // On its own, as the guest may be slow. What the agent refuses, the button may do.
            let qmp = qmp.clone();
            tokio::spawn(async move {
                if qga.shutdown("powerdown").await.is_err() {
                    let _ = qmp.system_powerdown().await;
                }
            });
        } else if let Ok(Err(error)) = tokio::time::timeout_at(deadline, qmp.system_powerdown()).await {
            debug!(machine = self.spec.name, %error, "the power button does not work");
        }
    }

    fn force(&mut self) {
        let Some(s) = &mut self.stopping else { return };
        s.forced = true;
        self.end.get_or_insert(End::Forced { grace: s.grace });
        if let Err(error) = self.process.kill() {
            warn!(machine = self.spec.name, %error, "cannot end the process");
        }
    }

    async fn on_event(&mut self, event: &Event, qmp: &Qmp) {
        match end_of(event) {
            Some(End::Shutdown) => return self.powered_off(qmp).await,
            Some(end) => return self.over(end, qmp).await,
            None => {}
        }
        let text = |key: &str| event.data.get(key).and_then(Value::as_str).unwrap_or_default();
        match event.name.as_str() {
            "VSERPORT_CHANGE" if text("id") == "agent0" => {
                let open = event.data.get("open").and_then(Value::as_bool).unwrap_or(false);
                self.port.send_replace(open);
            }
            // The state behind these is asked for, so that it does not matter what was missed.
            "STOP" | "RESUME" | "BLOCK_IO_ERROR" | "WATCHDOG" => self.look(qmp).await,
            "MEMORY_DEVICE_SIZE_CHANGE" => self.look_at_memory(qmp).await,
            // Somebody waits for it.
            "DEVICE_DELETED" => (self.changed)(),
            "RESET" => debug!(machine = self.spec.name, "the guest restarts"),
            _ => {}
        }
    }

    /// Asks QEMU for the state and follows it.
    async fn look(&mut self, qmp: &Qmp) {
        match qmp.query_status().await {
            Ok(state) => self.follow(state, qmp).await,
            Err(error) => debug!(machine = self.spec.name, %error, "the state is not known"),
        }
    }

    async fn look_at_memory(&mut self, qmp: &Qmp) {
        if !sheaf_qemu::args::grows(&self.spec) {
            return;
        }
        match qmp.plugged_memory().await {
            Ok(bytes) => self.publish(|s| s.memory_plugged = bytes),
            Err(error) => debug!(machine = self.spec.name, %error, "the plugged memory is not known"),
        }
    }

    fn held(&self) -> bool {
        self.held.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn follow(&mut self, state: RunState, qmp: &Qmp) {
        if self.held() && matches!(state, RunState::Paused | RunState::Other(_)) {
            return;
        }
        match state {
            // Whoever saved it has gone.
            RunState::Other(word) if word == "postmigrate" => self.on_state(Run::Paused(Pause::ByUser)),
            RunState::Running => self.on_state(Run::Running),
            RunState::Paused => self.on_state(Run::Paused(Pause::ByUser)),
            RunState::IoError => {
                let disks = qmp.failed_disks().await.unwrap_or_default();
                self.on_state(Run::Paused(Pause::IoError(disks)));
            }
            RunState::Shutdown => self.powered_off(qmp).await,
            RunState::GuestPanicked => self.over(End::Panicked, qmp).await,
            RunState::Prelaunch => {}
            RunState::InternalError => self.on_state(Run::Paused(Pause::Other("internal-error".into()))),
            RunState::Other(word) => self.on_state(Run::Paused(Pause::Other(word))),
        }
    }

    async fn powered_off(&mut self, qmp: &Qmp) {
        if std::mem::take(&mut self.rebooting) {
            let again = async {
                qmp.system_reset().await?;
                qmp.cont().await
            };
            match again.await {
                Ok(()) => return self.on_state(Run::Running),
                Err(error) => warn!(machine = self.spec.name, %error, "the guest does not start again"),
            }
        }
        self.over(End::Shutdown, qmp).await;
    }

    /// The guest has ended; QEMU is told to, too.
    async fn over(&mut self, end: End, qmp: &Qmp) {
        self.end.get_or_insert(end);
        let process = self.process.clone();
        if qmp.quit().await.is_err() || tokio::time::timeout(QUIT_DEADLINE, process.exited()).await.is_err() {
            let _ = process.kill();
        }
    }

    fn exited(mut self, exit: Exit) {
        let doom = self.doom.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = match (doom, self.end.take()) {
            // It was ending already when it was ended by force.
            (Some(End::Forced { .. }), Some(end)) => Some(end),
            (Some(doom), _) => Some(doom),
            (None, end) => end,
        };
        let end = end.unwrap_or_else(|| {
            let words = process::last_words(&self.dir);
            End::Crashed(words.unwrap_or_else(|| format!("QEMU ended unexpectedly, {exit}")))
        });
        info!(machine = self.spec.name, ?end, %exit, "ended");
        process::clean(&self.spec.uuid, &self.dir);
        self.port.send_replace(false);
        self.qmp_out.send_replace(None);
        self.publish(|s| s.guest.connected = false);
        self.on_state(Run::Ended(end));
    }
}

/// How long QEMU may take for huge pages before it says a word: it fills them all first, some GiB in a second.
fn filling(spec: &MachineSpec) -> Duration {
    Duration::from_secs(spec.rare.hugepages.map_or(0, |_| spec.memory_bytes >> 30))
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
