//! The thread that owns everything: state machines, disks, peers, guests. It waits, takes in what is ready, lets the
//! machines decide, and sends what they decided; it never blocks on a peer, a guest or a disk request.
//!
//! Work goes through one queue ([`io::Work`]), so that no table calls into another while it is being changed. What
//! changes the shape of the tables (orders from the control socket) is in [`orders`], [`replicas`] and [`clone`].

mod clone;
mod guests;
mod io;
mod link;
mod orders;
mod out;
mod poll;
mod replica;
mod replicas;
mod status;
mod volume;
mod workers;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use sheaf_block_core::coordinator;
use sheaf_block_core::ids::{LinkId, ReplicaId, Time, VolumeId};
use sheaf_block_core::replica::Event;
use sheaf_block_core::wire::{Frame, Summed};
use sheaf_disk::engine::{Ending, Engine};

use self::guests::{Guest, Listener};
use self::io::{Io, Key, Work};
pub(crate) use self::link::Security;
use self::link::{Link, Side};
use self::poll::{Poll, Ready, Source};
use self::replica::ReplicaShell;
use self::volume::{Peer, VolumeShell};
use crate::api::{Answer, Ask};
use crate::votes::Votes;

/// A co-located coordinator is this link; connections are numbered above it.
const LOCAL: LinkId = LinkId(0);
/// How long the end waits for disks, and how often it looks.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// After a connection broke, another is not tried before.
const RECONNECT: u64 = 200_000;
/// After a replica's disk refused, it is opened again.
const REOPEN: u64 = 2_000_000;

/// With so many disk requests under way, and fewer than so many that ended in the last turn, the next turn lets more of them
/// gather: a turn for each costs more than the request. What is added to their latency is small beside the queue's own.
const GATHER_FROM: usize = 16;
const GATHER_FEW: usize = 8;
const GATHER: Duration = Duration::from_micros(20);

/// Memory of blocks that is kept for the next ones.
const KEPT: usize = 8 << 20;

/// A question with the way back.
pub(crate) type Order = (Ask, SyncSender<Answer>);

/// What the reactor is started with.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Roots of the disks.
    pub(crate) disks: Vec<PathBuf>,
    /// Where attachments are remembered.
    pub(crate) state: PathBuf,
    /// For peers.
    pub(crate) listener: Option<TcpListener>,
    /// How peers talk.
    pub(crate) security: Security,
    /// The tie-breaking vote.
    pub(crate) votes: Option<Votes>,
    /// Do not use io_uring.
    pub(crate) threads: bool,
    /// Orders; a byte in the eventfd says that there are some.
    pub(crate) inbox: Receiver<Order>,
}

/// A replica's directory that is not open, and why.
#[derive(Debug)]
struct Closed {
    path: PathBuf,
    key: Option<Key>,
    reason: String,
    again_at: Time,
}

/// See the module.
pub(crate) struct Reactor {
    io: Io,
    setup: Setup,
    replicas: BTreeMap<Key, ReplicaShell>,
    closed: Vec<Closed>,
    volumes: BTreeMap<VolumeId, VolumeShell>,
    links: Vec<Option<Link>>,
    listeners: Vec<Option<Listener>>,
    guests: Vec<Option<Guest>>,
    guest_buffer: Vec<u8>,
    /// Orders that wait for something.
    waiting: Vec<orders::Waiting>,
    /// Attachments as they were remembered last.
    remembered: Vec<u8>,
    stop: bool,
    /// What was sent last.
    summed: Summed,
    /// Room for what machines ask for.
    needs: Vec<replica::Need>,
    volume_needs: Vec<volume::Need>,
}

/// Puts something into the first free place.
fn place<T>(table: &mut Vec<Option<T>>, value: T) -> u32 {
    let at = table.iter().position(Option::is_none).unwrap_or_else(|| {
        table.push(None);
        table.len() - 1
    });
    table[at] = Some(value);
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Reactor {
    pub(crate) fn new(setup: Setup) -> std::io::Result<(Self, std::sync::Arc<std::os::fd::OwnedFd>)> {
        let engine = if setup.threads { Engine::with_threads()? } else { Engine::new()? };
        tracing::info!(engine = engine.name(), "disk requests go by");
        let poll = Poll::new()?;
        poll.add(&engine, Source::Engine)?;
        let workers = workers::Workers::new()?;
        poll.add(&workers, Source::Workers)?;
        let wake = std::sync::Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        poll.add(&wake, Source::Inbox)?;
        if let Some(listener) = &setup.listener {
            listener.set_nonblocking(true)?;
            poll.add(listener, Source::PeerListener)?;
        }
        let mut this = Self {
            io: Io::new(engine, poll, workers),
            setup,
            replicas: BTreeMap::new(),
            closed: Vec::new(),
            volumes: BTreeMap::new(),
            links: Vec::new(),
            listeners: Vec::new(),
            guests: Vec::new(),
            guest_buffer: Vec::new(),
            waiting: Vec::new(),
            remembered: Vec::new(),
            stop: false,
            summed: Summed::default(),
            needs: Vec::new(),
            volume_needs: Vec::new(),
        };
        this.scan();
        this.resume();
        Ok((this, wake))
    }

    /// Runs until the other end of the inbox is gone.
    pub(crate) fn run(mut self, wake: &std::os::fd::OwnedFd) -> std::io::Result<()> {
        sheaf_disk::buffer::keep(KEPT);
        let (mut ready, mut endings) = (Vec::new(), Vec::new());
        let mut ended = 0;
        while !self.stop {
            self.drain();
            self.flush();
            self.io.engine.kick()?;
            if self.io.engine.pending() >= GATHER_FROM && ended < GATHER_FEW {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "time for endings to gather; none is waited for"
                )]
                std::thread::sleep(GATHER);
            }
            let pause = self.pause();
            ready.clear();
            self.io.poll.wait(pause, &mut ready)?;
            self.io.turn();
            for ready in &ready {
                match ready.source {
                    Source::Engine => {}
                    Source::Workers => self.worked(),
                    Source::Inbox => {
                        let _ = rustix::io::read(wake, &mut [0; 8]);
                        self.orders();
                    }
                    Source::PeerListener => self.accept_peers(),
                    Source::Link(index) => self.link_ready(index, *ready),
                    Source::GuestListener(index) => self.accept_guests(index),
                    Source::Guest(index) => self.guest_ready(index, *ready),
                    Source::Kick(index, queue) => self.kicked(index, queue),
                }
            }
            endings.clear();
            self.io.engine.reap(&mut endings);
            ended = endings.len();
            for ending in endings.drain(..) {
                self.disk_ended(ending);
            }
            self.ticks();
        }
        self.settle()?;
        self.close_all();
        Ok(())
    }

    /// Lets what is under way at the disks end, within bounds: only then is a replica closed properly. Nobody else is heard or
    /// answered any more: guests and peers go on with the process that comes next.
    fn settle(&mut self) -> std::io::Result<()> {
        self.let_go();
        let until = Instant::now() + CLOSE_PATIENCE;
        let (mut ready, mut endings) = (Vec::new(), Vec::new());
        while self.replicas.values().any(|shell| shell.pending > 0) && Instant::now() < until {
            self.io.engine.kick()?;
            ready.clear();
            self.io.poll.wait(CLOSE_LOOK, &mut ready)?;
            self.worked();
            endings.clear();
            self.io.engine.reap(&mut endings);
            for ending in endings.drain(..) {
                self.disk_ended(ending);
            }
            self.drain();
        }
        Ok(())
    }

    fn pause(&self) -> Duration {
        let now = self.io.now();
        let ticks = self.volumes.values().map(|volume| volume.next_tick);
        let reopen = self.closed.iter().map(|closed| closed.again_at);
        let next = ticks.chain(reopen).min().unwrap_or(Time(u64::MAX));
        Duration::from_micros(next.0.saturating_sub(now.0).min(1_000_000))
    }

    fn ticks(&mut self) {
        let now = self.io.now();
        let due: Vec<VolumeId> =
            self.volumes.values().filter(|volume| volume.next_tick <= now).map(|volume| volume.id).collect();
        for id in due {
            self.io.work.push_back(Work::Volume(id, coordinator::Event::Tick));
        }
        self.drain();
        self.reopen(now);
        self.look_at_waiting();
    }

    /// Lets the machines decide until nothing is left to decide.
    fn drain(&mut self) {
        loop {
            while let Some(work) = self.io.work.pop_front() {
                match work {
                    Work::Replica(key, event) => self.replica_event(key, event),
                    Work::Volume(id, event) => self.volume_event(id, event),
                    Work::Guest(guest, completion) => self.complete(guest, completion),
                }
            }
            let Some(id) = self.io.unsettled.pop() else { return };
            let mut needs = std::mem::take(&mut self.volume_needs);
            if let Some(shell) = self.volumes.get_mut(&id) {
                shell.settled(&mut self.io, &mut needs);
            }
            self.do_needs(id, needs);
        }
    }

    fn replica_event(&mut self, key: Key, event: Event) {
        let mut needs = std::mem::take(&mut self.needs);
        if let Some(shell) = self.replicas.get_mut(&key) {
            shell.on(&mut self.io, event, &mut needs);
        }
        self.replica_needs(key, needs);
    }

    fn replica_needs(&mut self, key: Key, mut needs: Vec<replica::Need>) {
        for need in needs.drain(..) {
            match need {
                replica::Need::Send(link, frame) if link == LOCAL => {
                    let event = coordinator::Event::Frame(key.1, frame);
                    self.io.work.push_back(Work::Volume(key.0, event));
                }
                replica::Need::Send(link, frame) => {
                    let index = u32::try_from(link.0 - 1).unwrap_or(u32::MAX);
                    self.send(index, &frame);
                }
                replica::Need::Reopen(reason) => self.give_up(key, reason),
                replica::Need::Made(path) => self.made(path),
            }
        }
        self.needs = needs;
    }

    fn disk_ended(&mut self, ending: Ending) {
        let Some(purpose) = self.io.purpose(ending.tag) else { return };
        let mut needs = std::mem::take(&mut self.needs);
        if let Some(shell) = self.replicas.get_mut(&purpose.key) {
            shell.disk(&mut self.io, purpose, ending, &mut needs);
        }
        self.replica_needs(purpose.key, needs);
    }

    /// Work on layers has ended.
    fn worked(&mut self) {
        let outcomes: Vec<workers::Outcome> = self.io.workers.reap().collect();
        for (key, op, result) in outcomes {
            if let Some(shell) = self.replicas.get_mut(&key) {
                shell.worked(&mut self.io, op, result);
            }
        }
    }

    fn volume_event(&mut self, id: VolumeId, event: coordinator::Event) {
        let mut needs = std::mem::take(&mut self.volume_needs);
        if let Some(shell) = self.volumes.get_mut(&id) {
            shell.on(&mut self.io, event, &mut needs);
        }
        self.do_needs(id, needs);
    }

    fn do_needs(&mut self, id: VolumeId, mut needs: Vec<volume::Need>) {
        for need in needs.drain(..) {
            match need {
                volume::Need::Again => self.again(id),
                volume::Need::Send(to, frame) => self.send_to(id, to, frame),
                volume::Need::AskApi(ask) => {
                    let answer = match &self.setup.votes {
                        Some(Votes::Here(arbiter)) => arbiter.ask(id, ask),
                        // The answer comes as an order. One that is lost is asked for again.
                        Some(Votes::Elsewhere(asker)) => {
                            asker.ask(id, ask);
                            continue;
                        }
                        None => {
                            if let Some(shell) = self.volumes.get_mut(&id)
                                && !std::mem::replace(&mut shell.arbiter_asked, true)
                            {
                                tracing::warn!(
                                    volume = shell.attach.name,
                                    "no arbiter keeps votes here; an even number of replicas needs one"
                                );
                            }
                            continue;
                        }
                    };
                    match answer {
                        Ok(answer) => {
                            self.io.work.push_back(Work::Volume(id, coordinator::Event::Api(answer)));
                        }
                        Err(error) => tracing::warn!(%error, "the arbiter did not answer"),
                    }
                }
            }
        }
        self.volume_needs = needs;
    }

    /// A frame to a replica, wherever it is.
    fn send_to(&mut self, volume: VolumeId, to: ReplicaId, frame: Frame) {
        let now = self.io.now();
        let Some(shell) = self.volumes.get_mut(&volume) else { return };
        let Some(at) = shell.replica(to) else { return };
        let Some(address) = at.address.clone() else {
            self.io.work.push_back(Work::Replica((volume, to), Event::Frame(LOCAL, frame)));
            return;
        };
        let index = match shell.peers.get(&to) {
            Some(Peer::Link(index)) => *index,
            // The machine sends again what is not answered.
            Some(Peer::Rest(until)) if now < *until => return,
            _ => match Link::connect(&address, &self.setup.security, Side::Out(volume, to)) {
                Ok(link) => {
                    let index = place(&mut self.links, link);
                    if let Some(Some(link)) = self.links.get(index as usize) {
                        let _ = self.io.poll.add(link, Source::Link(index));
                    }
                    shell.peers.insert(to, Peer::Link(index));
                    index
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "cannot connect");
                    shell.peers.insert(to, Peer::Rest(now.after(RECONNECT)));
                    return;
                }
            },
        };
        self.send(index, &frame);
    }

    fn send(&mut self, index: u32, frame: &Frame) {
        let Some(Some(link)) = self.links.get_mut(index as usize) else { return };
        if let Err(error) = link.send(frame, &mut self.summed) {
            self.drop_link(index, &error);
        }
    }

    fn drop_link(&mut self, index: u32, error: &link::LinkError) {
        let Some(link) = self.links.get_mut(index as usize).and_then(Option::take) else { return };
        self.io.poll.remove(&link);
        if let Side::Out(volume, replica) = link.side {
            tracing::info!(volume = crate::api::show_volume(volume), %replica, %error, "connection to a replica ended");
            let until = self.io.now().after(RECONNECT);
            if let Some(shell) = self.volumes.get_mut(&volume) {
                shell.peers.insert(replica, Peer::Rest(until));
            }
            self.io.work.push_back(Work::Volume(volume, coordinator::Event::Lost(replica)));
        }
    }

    fn accept_peers(&mut self) {
        while let Some(listener) = &self.setup.listener
            && let Ok((stream, from)) = listener.accept()
        {
            match Link::accepted(stream, &self.setup.security) {
                Ok(link) => {
                    let index = place(&mut self.links, link);
                    if let Some(Some(link)) = self.links.get(index as usize)
                        && let Err(error) = self.io.poll.add(link, Source::Link(index))
                    {
                        tracing::warn!(%from, %error, "a peer was turned away");
                        self.links[index as usize] = None;
                    }
                }
                Err(error) => tracing::warn!(%from, %error, "a peer was turned away"),
            }
        }
    }

    fn link_ready(&mut self, index: u32, ready: Ready) {
        let Some(Some(link)) = self.links.get_mut(index as usize) else { return };
        let mut frames = Vec::new();
        let mut result = Ok(());
        if ready.writable || !ready.readable {
            result = link.writable().map(drop);
        }
        if ready.readable && result.is_ok() {
            // A connection that has just come about may be readable in the same moment.
            result = link.writable().map(drop).and_then(|()| link.readable(&mut frames));
        }
        let side = link.side;
        for frame in frames {
            match side {
                Side::Out(volume, replica) if frame.volume == volume && frame.replica == replica => {
                    self.io.work.push_back(Work::Volume(volume, coordinator::Event::Frame(replica, frame)));
                }
                Side::Out(..) => {}
                Side::In => {
                    let key = (frame.volume, frame.replica);
                    let link = LinkId(u64::from(index) + 1);
                    self.io.work.push_back(Work::Replica(key, Event::Frame(link, frame)));
                }
            }
        }
        if let Err(error) = result {
            // What came before the end counts.
            self.drain();
            self.drop_link(index, &error);
        }
    }

    /// Sends what waits, and tells `epoll` about what does not go.
    fn flush(&mut self) {
        self.summed.clear();
        for index in 0..u32::try_from(self.links.len()).unwrap_or(0) {
            let Some(Some(link)) = self.links.get_mut(index as usize) else { continue };
            match link.flush() {
                Ok(done) => {
                    if link.wants_write == done {
                        link.wants_write = !done;
                        let _ = self.io.poll.change(&*link, Source::Link(index), true, !done);
                    }
                }
                Err(error) => self.drop_link(index, &error),
            }
        }
        self.flush_guests();
    }
}
