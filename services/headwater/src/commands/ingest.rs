//! `headwater ingest`: reads lines, appends them in batches, several at a time, and prints a tally.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    time::Duration,
};

use flate2::bufread::MultiGzDecoder;
use headwater_proto::ingest::v1::{AppendRequest, AppendResponse, append_result::Outcome};
use headwater_types::Token;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    cli::IngestArgs,
    client::Server,
    failure::{Exit, Failure, Result},
    output::thousands,
};

/// A longer line is refused here: the server would refuse it anyway.
const MAX_LINE: usize = 16 << 20;
/// A batch ends at this size, however few events it has.
const MAX_BATCH_BYTES: usize = 2 << 20;
/// Batches that may be sent and not answered yet.
const IN_FLIGHT: usize = 8;
/// Refusals that are printed. The tally counts all of them.
const PRINTED: u64 = 20;

struct Batch {
    events: Vec<Vec<u8>>,
    lines: Vec<u64>,
}

/// An item of the file, from the thread that reads it.
enum Item {
    Batch(Batch),
    TooLong { line: u64 },
}

#[derive(Default)]
struct Tally {
    accepted: u64,
    rejected: u64,
    token: Option<Token>,
}

pub(super) async fn run(server: &Server, args: IngestArgs) -> Result {
    let mut client = server.ingest();
    let (items, mut from_file) = mpsc::channel::<io::Result<Item>>(2);
    let batch = args.batch as usize;
    let path = args.file.clone();
    let reading = std::thread::spawn(move || read(&path, batch, &items));

    let (requests, outgoing) = mpsc::channel(IN_FLIGHT);
    // The first request must not wait for the answer's headers, which the server may send late.
    let call = client.append_stream(ReceiverStream::new(outgoing));
    let mut call = Box::pin(call);
    let mut answers: Option<tonic::Streaming<AppendResponse>> = None;
    let mut waiting: VecDeque<Vec<u64>> = VecDeque::new();
    let mut tally = Tally::default();
    let mut requests = Some(requests);
    let mut failure = None;
    let bar = progress();
    let started = Instant::now();
    let mut sent: u64 = 0;

    loop {
        let pace = match args.rate {
            Some(rate) => started + Duration::from_secs_f64(sent as f64 / f64::from(rate)),
            None => started,
        };
        let room = requests.is_some() && waiting.len() < IN_FLIGHT;
        tokio::select! {
            opened = &mut call, if answers.is_none() => match opened {
                Ok(response) => answers = Some(response.into_inner()),
                Err(status) => { failure = Some(Failure::from(status)); break; }
            },
            item = async { tokio::time::sleep_until(pace).await; from_file.recv().await }, if room => match item {
                Some(Ok(Item::Batch(batch))) => {
                    sent += batch.events.len() as u64;
                    waiting.push_back(batch.lines);
                    let request = AppendRequest {
                        stream: args.stream.clone(),
                        events: batch.events.into_iter().map(Into::into).collect(),
                    };
                    if let Some(requests) = &requests {
                        // If the channel is closed, the call has failed and says why.
                        let _ = requests.send(request).await;
                    }
                }
                Some(Ok(Item::TooLong { line })) => {
                    tally.refuse(line, "", &format!("longer than {} MiB", MAX_LINE >> 20));
                }
                Some(Err(error)) => {
                    failure = Some(Failure::usage(format!("cannot read {}: {error}", args.file.display())));
                    requests = None;
                    if waiting.is_empty() { break; }
                }
                None => {
                    requests = None;
                    if waiting.is_empty() { break; }
                }
            },
            answer = async { match &mut answers { Some(answers) => answers.message().await, None => std::future::pending().await } } => match answer {
                Ok(Some(answer)) => {
                    let lines = waiting.pop_front().unwrap_or_default();
                    for (result, line) in answer.results.iter().zip(lines) {
                        if let Some(Outcome::Rejected(rejected)) = &result.outcome {
                            tally.refuse(line, &rejected.field, &rejected.reason);
                        }
                    }
                    tally.accepted += answer.accepted;
                    if let Ok(token) = answer.token.parse::<Token>() {
                        match &mut tally.token {
                            Some(all) => all.join(&token),
                            none => *none = Some(token),
                        }
                    }
                    bar.set_position(tally.accepted);
                    if requests.is_none() && waiting.is_empty() { break; }
                }
                Ok(None) => {
                    failure = Some(Failure::new(Exit::Unavailable, "the server ended the call before it answered"));
                    break;
                }
                Err(status) => { failure = Some(Failure::from(status)); break; }
            },
        }
    }
    bar.finish_and_clear();
    drop(from_file);
    // The reading thread ends by itself when its channel is closed.
    drop(reading);
    let unanswered: u64 = waiting.iter().map(|lines| lines.len() as u64).sum();
    if tally.rejected > PRINTED {
        eprintln!("… and {} more", thousands(tally.rejected - PRINTED));
    }
    let seconds = started.elapsed().as_secs_f64().max(1e-9);
    eprintln!(
        "{} accepted in {seconds:.2} s, {}/s",
        thousands(tally.accepted),
        thousands((tally.accepted as f64 / seconds) as u64)
    );
    let token = tally.token.map(|token| token.to_string()).unwrap_or_default();
    println!("{}", json!({"accepted": tally.accepted, "rejected": tally.rejected, "token": token}));
    match failure {
        Some(mut failure) => {
            if unanswered > 0 {
                failure.message.push_str(&format!(
                    "; {} events were sent and not answered",
                    thousands(unanswered)
                ));
            }
            Err(failure)
        }
        None if tally.rejected > 0 => {
            Err(Failure::new(Exit::Failed, format!("{} events were rejected", tally.rejected)))
        }
        None => Ok(()),
    }
}

impl Tally {
    fn refuse(&mut self, line: u64, field: &str, reason: &str) {
        self.rejected += 1;
        if self.rejected <= PRINTED {
            let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
            eprintln!("line {line}: {field}{reason}");
        }
    }
}

fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} accepted · {per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Reads lines into batches, until the end of the file or until the channel is closed.
fn read(path: &std::path::Path, batch: usize, items: &mpsc::Sender<io::Result<Item>>) {
    let result = open(path).and_then(|mut input| {
        let mut current =
            Batch { events: Vec::with_capacity(batch), lines: Vec::with_capacity(batch) };
        let mut bytes = 0;
        let mut number = 0;
        loop {
            let mut line = Vec::new();
            let read = (&mut input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
            } else if line.len() > MAX_LINE {
                drop(line);
                skip_line(&mut input)?;
                if items.blocking_send(Ok(Item::TooLong { line: number })).is_err() {
                    return Ok(());
                }
                continue;
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let next = current.events.len() >= batch || bytes + line.len() > MAX_BATCH_BYTES;
            if next && !current.events.is_empty() {
                let full = Batch {
                    events: std::mem::replace(&mut current.events, Vec::with_capacity(batch)),
                    lines: std::mem::replace(&mut current.lines, Vec::with_capacity(batch)),
                };
                bytes = 0;
                if items.blocking_send(Ok(Item::Batch(full))).is_err() {
                    return Ok(());
                }
            }
            bytes += line.len();
            current.events.push(line);
            current.lines.push(number);
        }
        if !current.events.is_empty() {
            let _ = items.blocking_send(Ok(Item::Batch(current)));
        }
        Ok(())
    });
    if let Err(error) = result {
        let _ = items.blocking_send(Err(error));
    }
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        match buffer.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                input.consume(end + 1);
                return Ok(());
            }
            None => {
                let all = buffer.len();
                input.consume(all);
            }
        }
    }
}

/// Opens a file or standard input, and decompresses it if it begins with the bytes of gzip.
fn open(path: &std::path::Path) -> io::Result<Box<dyn BufRead>> {
    let mut raw: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(BufReader::with_capacity(1 << 16, io::stdin()))
    } else {
        Box::new(BufReader::with_capacity(1 << 16, File::open(path)?))
    };
    if raw.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(raw))));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn items(content: &[u8], batch: usize) -> Vec<io::Result<Item>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let (sender, mut receiver) = mpsc::channel(1000);
        read(file.path(), batch, &sender);
        drop(sender);
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn lines_become_batches_and_keep_their_numbers() {
        let items = items(b"{\"a\":1}\n\n{\"a\":2}\n{\"a\":3}", 2);
        let [Ok(Item::Batch(first)), Ok(Item::Batch(second))] = &items[..] else {
            panic!("two batches")
        };
        assert_eq!(first.lines, [1, 3]);
        assert_eq!(second.lines, [4]);
        assert_eq!(second.events, [b"{\"a\":3}"]);
    }

    #[test]
    fn gzip_is_recognised_by_its_first_bytes() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"{\"a\":1}\n").unwrap();
        let items = items(&packed.finish().unwrap(), 10);
        let [Ok(Item::Batch(batch))] = &items[..] else { panic!("one batch") };
        assert_eq!(batch.events, [b"{\"a\":1}"]);
    }

    #[test]
    fn a_line_without_end_is_refused_and_the_next_one_still_read() {
        let mut content = vec![b'x'; MAX_LINE + 5];
        content.extend_from_slice(b"\n{}\n");
        let items = items(&content, 10);
        assert!(matches!(items[..], [Ok(Item::TooLong { line: 1 }), Ok(Item::Batch(_))]));
    }
}
