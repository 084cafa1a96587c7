//! A broker for tests that speaks ApiVersions and Metadata only, and fails as real ones do.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use parking_lot::Mutex;

/// How the broker answers a question for metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Lists itself as the only broker.
    Serving,
    /// Lists no broker, as a Kafka broker does that was paused beyond its session and is fenced.
    Fenced,
    /// Answers only connections that were made since this mode was set.
    DeafToOldConnections,
    /// Answers no question for metadata, as if it were paused.
    DeafToAll,
}

/// Dropping it ends the listener. Connections end when their client goes.
pub(crate) struct FakeBroker {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    mode: Mutex<Mode>,
    connections: AtomicUsize,
    /// Connections with a lower number get no answer.
    deaf_below: AtomicUsize,
    /// Questions for metadata since the mode was set.
    asked: AtomicUsize,
    answered: AtomicUsize,
    stop: AtomicBool,
}

const API_VERSIONS: i16 = 18;
const METADATA: i16 = 3;
const UNKNOWN_TOPIC: i16 = 3;

impl FakeBroker {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Serving),
            connections: AtomicUsize::new(0),
            deaf_below: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let own = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.stop.load(Ordering::SeqCst) {
                    return;
                }
                let number = own.connections.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                thread::spawn(move || while own.answer(&stream, number, address).is_some() {});
            }
        });
        Self { address, shared }
    }

    pub(crate) fn bootstrap_servers(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn set(&self, mode: Mode) {
        let mut current = self.shared.mode.lock();
        if mode == Mode::DeafToOldConnections {
            let connections = self.shared.connections.load(Ordering::SeqCst);
            self.shared.deaf_below.store(connections, Ordering::SeqCst);
        }
        self.shared.asked.store(0, Ordering::SeqCst);
        self.shared.answered.store(0, Ordering::SeqCst);
        *current = mode;
    }

    /// How many questions for metadata came since the mode was set.
    pub(crate) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// How many of them were answered.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }
}

impl Drop for FakeBroker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    /// Reads one request and answers it. `None` when the connection has ended.
    fn answer(&self, mut stream: &TcpStream, number: usize, address: SocketAddr) -> Option<()> {
        let mut size = [0; 4];
        stream.read_exact(&mut size).ok()?;
        let mut request = vec![0; usize::try_from(i32::from_be_bytes(size)).ok()?];
        stream.read_exact(&mut request).ok()?;
        let (key, version) = (int16(&request, 0), int16(&request, 2));
        let body = match key {
            API_VERSIONS => api_versions(version),
            METADATA => {
                let mode = self.mode.lock();
                self.asked.fetch_add(1, Ordering::SeqCst);
                metadata(&request, (*mode != Mode::Fenced).then_some(address))
            }
            other => panic!("the client asks for API {other}, which this broker does not have"),
        };
        let deaf_to_all = key == METADATA && *self.mode.lock() == Mode::DeafToAll;
        if deaf_to_all || number < self.deaf_below.load(Ordering::SeqCst) {
            return Some(());
        }
        if key == METADATA {
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        let mut answer = i32::try_from(4 + body.len()).ok()?.to_be_bytes().to_vec();
        answer.extend(&request[4..8]);
        answer.extend(body);
        stream.write_all(&answer).ok()
    }
}

fn int16(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn string(text: &str, into: &mut Vec<u8>) {
    into.extend(i16::try_from(text.len()).unwrap().to_be_bytes());
    into.extend(text.as_bytes());
}

/// ApiVersions 0 to 3 and Metadata 1.
fn api_versions(version: i16) -> Vec<u8> {
    let (flexible, apis) = (version >= 3, [(API_VERSIONS, 0, 3), (METADATA, 1, 1)]);
    let mut body = 0_i16.to_be_bytes().to_vec();
    match flexible {
        true => body.push(apis.len() as u8 + 1),
        false => body.extend((apis.len() as i32).to_be_bytes()),
    }
    for (key, min, max) in apis {
        body.extend([key, min, max].into_iter().flat_map(i16::to_be_bytes));
        body.extend(flexible.then_some(0_u8));
    }
    if version >= 1 {
        body.extend(0_i32.to_be_bytes());
    }
    body.extend(flexible.then_some(0_u8));
    body
}

/// Metadata 1: this broker or none, and no topic exists.
fn metadata(request: &[u8], broker: Option<SocketAddr>) -> Vec<u8> {
    let client_id = usize::try_from(int16(request, 8)).unwrap_or(0);
    let mut at = 10 + client_id + 4;
    let mut body = i32::from(broker.is_some()).to_be_bytes().to_vec();
    if let Some(address) = broker {
        body.extend(1_i32.to_be_bytes());
        string(&address.ip().to_string(), &mut body);
        body.extend(i32::from(address.port()).to_be_bytes());
        body.extend((-1_i16).to_be_bytes());
    }
    body.extend(if broker.is_some() { 1_i32 } else { -1 }.to_be_bytes());
    let mut topics = Vec::new();
    while at < request.len() {
        let length = usize::try_from(int16(request, at)).unwrap();
        topics.push(std::str::from_utf8(&request[at + 2..at + 2 + length]).unwrap());
        at += 2 + length;
    }
    body.extend((topics.len() as i32).to_be_bytes());
    for topic in topics {
        body.extend(UNKNOWN_TOPIC.to_be_bytes());
        string(topic, &mut body);
        body.push(0);
        body.extend(0_i32.to_be_bytes());
    }
    body
}
