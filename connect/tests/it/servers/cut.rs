//! A wire that can be cut: a proxy in front of a server, which breaks, holds or refuses what a test wants broken.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::process::free_port;

/// How the wire behaves, and what went over it.
#[derive(Default)]
struct State {
    /// Bytes are held until this is false again.
    stalled: bool,
    refusing: bool,
    /// Nobody listens, so that the kernel refuses.
    closed: bool,
    stopped: bool,
    /// So many more bytes from the server until all connections are cut.
    cut_after: Option<u64>,
    up: u64,
    down: u64,
    accepted: u64,
    /// Both ends of each open connection, by its number.
    open: Vec<(u64, [TcpStream; 2])>,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A proxy on a port of its own; it ends, and cuts all, on drop.
pub struct Wire {
    shared: Shared,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Leads to a port of this machine.
    pub fn to(port: u16) -> Self {
        let listener = loop {
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())) {
                break listener;
            }
        };
        let address = listener.local_addr().unwrap();
        let shared = Shared::default();
        let of_thread = shared.clone();
        let accept = move || accept(&of_thread, listener, port);
        let thread = std::thread::Builder::new().name("wire".into()).spawn(accept).unwrap();
        Self { shared, address, thread: Some(thread) }
    }

    /// The port to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    /// Cuts all connections, in both directions at once.
    pub fn cut(&self) {
        cut_all(&mut self.lock());
        self.shared.1.notify_all();
    }

    /// Cuts all connections once the server has sent so many more bytes; for a cut in the middle of something.
    pub fn cut_after(&self, bytes: u64) {
        self.lock().cut_after = Some(bytes);
    }

    /// Holds all bytes; connections stay open, as with a network that loses its packets.
    pub fn stall(&self) {
        self.lock().stalled = true;
    }

    /// Lets held bytes go on.
    pub fn flow(&self) {
        self.lock().stalled = false;
        self.shared.1.notify_all();
    }

    /// Holds all bytes for so long.
    pub fn stall_for(&self, time: Duration) {
        self.stall();
        std::thread::sleep(time);
        self.flow();
    }

    /// New connections are refused, as by a machine without the server; open ones stay.
    pub fn refuse(&self) {
        self.lock().refusing = true;
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        drop(self.shared.1.wait_while(self.lock(), |state| !state.closed).unwrap());
        // A child process that is just being started elsewhere holds a copy of the listener until it runs its program.
        while TcpStream::connect(self.address).is_ok() {
            std::thread::yield_now();
        }
    }

    /// New connections are let in again.
    pub fn accept(&self) {
        self.lock().refusing = false;
        self.shared.1.notify_all();
        drop(self.shared.1.wait_while(self.lock(), |state| state.closed).unwrap());
    }

    /// Bytes so far to the server and from it.
    pub fn bytes(&self) -> (u64, u64) {
        let state = self.lock();
        (state.up, state.down)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.lock().open.len()
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.lock().accepted
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        {
            let mut state = self.shared.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            state.stopped = true;
            cut_all(&mut state);
        }
        self.shared.1.notify_all();
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cut_all(state: &mut State) {
    for (_, ends) in state.open.drain(..) {
        for end in ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn accept(shared: &Shared, listener: TcpListener, port: u16) {
    let address = listener.local_addr().unwrap();
    let mut door = Some(listener);
    let mut pumps: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let Some(listener) = &door else {
            let state = shared.0.lock().unwrap();
            let mut state = shared.1.wait_while(state, |state| state.refusing && !state.stopped).unwrap();
            if state.stopped {
                break;
            }
            // The port is below those that the kernel gives away; only a copy of the old listener may still have it.
            door = TcpListener::bind(address).ok();
            state.closed = door.is_none();
            shared.1.notify_all();
            continue;
        };
        let client = listener.accept();
        let mut state = shared.0.lock().unwrap();
        if state.stopped {
            break;
        }
        if state.refusing {
            door = None;
            state.closed = true;
            shared.1.notify_all();
            continue;
        }
        let Ok((client, _)) = client else { continue };
        let number = state.accepted;
        state.accepted += 1;
        // A server that is away is told by an end without a byte.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
        for end in [&client, &server] {
            end.set_nodelay(true).unwrap();
        }
        let copy = |end: &TcpStream| end.try_clone().unwrap();
        state.open.push((number, [copy(&client), copy(&server)]));
        drop(state);
        for (from, to, down) in [(copy(&client), copy(&server), false), (server, client, true)] {
            let shared = shared.clone();
            let pump = move || pump(&shared, number, from, to, down);
            pumps.push(std::thread::Builder::new().name("pump".into()).spawn(pump).unwrap());
        }
        pumps.retain(|pump| !pump.is_finished());
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// Carries bytes one way until either end is closed.
fn pump(shared: &Shared, number: u64, mut from: TcpStream, mut to: TcpStream, down: bool) {
    let (state, changed) = &**shared;
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let mut state = state.lock().unwrap();
        let is_open = |state: &State| state.open.iter().any(|(open, _)| *open == number);
        state = changed.wait_while(state, |state| state.stalled && is_open(state)).unwrap();
        if !is_open(&state) {
            break;
        }
        let mut carried = read as u64;
        let mut cut = false;
        if let (true, Some(left)) = (down, state.cut_after) {
            carried = carried.min(left);
            cut = carried == left;
            state.cut_after = (!cut).then_some(left - carried);
        }
        *(if down { &mut state.down } else { &mut state.up }) += carried;
        drop(state);
        let written = to.write_all(&buffer[..carried as usize]);
        if cut {
            cut_all(&mut shared.0.lock().unwrap());
            changed.notify_all();
        }
        if written.is_err() || cut {
            break;
        }
    }
    let mut state = state.lock().unwrap();
    if !down {
        // The client's goodbye is carried over; the server may still have something to say.
        let _ = to.shutdown(Shutdown::Write);
    } else if let Some(at) = state.open.iter().position(|(open, _)| *open == number) {
        for end in state.open.remove(at).1 {
            let _ = end.shutdown(Shutdown::Both);
        }
        changed.notify_all();
    }
}
