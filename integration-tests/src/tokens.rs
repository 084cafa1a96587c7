//! An endpoint that issues tokens to clients that know their secret (OAuth's client credentials),
//! as an identity provider does. Its tokens are not signed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use headwater_types::{Clock as _, SystemClock};

/// The token that the endpoint issues, and the client that gets it.
#[derive(Clone, Debug)]
pub struct Grant {
    pub client: String,
    pub secret: String,
    pub scope: String,
    pub lifetime: Duration,
}

/// A running endpoint. It ends with its value.
pub struct TokenEndpoint {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    grant: Mutex<Grant>,
    issued: AtomicUsize,
    stop: AtomicBool,
}

impl TokenEndpoint {
    pub fn start(grant: Grant) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let url = format!("http://{}/token", listener.local_addr()?);
        let shared = Arc::new(Shared {
            grant: Mutex::new(grant),
            issued: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let served = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if served.stop.load(Ordering::Relaxed) {
                    break;
                }
                // A client may go away in the middle.
                let _ = stream.map_err(anyhow::Error::from).and_then(|it| served.answer(&it));
            }
        });
        Ok(Self { url, shared })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The number of tokens that it has issued.
    pub fn issued(&self) -> usize {
        self.shared.issued.load(Ordering::Relaxed)
    }

    /// Changes the tokens that it issues from now on.
    pub fn change(&self, change: impl FnOnce(&mut Grant)) {
        change(&mut self.shared.grant.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for TokenEndpoint {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A connection wakes the endpoint, so that it sees that.
        let address = self.url.trim_start_matches("http://").trim_end_matches("/token");
        let _ = TcpStream::connect(address);
    }
}

impl Shared {
    fn answer(&self, mut stream: &TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream);
        let (mut length, mut authorization) = (0, String::new());
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            if let Some((name, value)) = line.split_once(':') {
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse()?,
                    "authorization" => authorization = value.trim().to_owned(),
                    _ => {}
                }
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;

        let grant = self.grant.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let expected = format!("{}:{}", grant.client, grant.secret);
        let expected = format!("Basic {}", base64(expected.as_bytes(), PADDED));
        let (status, answer) = if !body.contains("grant_type=client_credentials") {
            ("400 Bad Request", r#"{"error":"unsupported_grant_type"}"#.to_owned())
        } else if authorization != expected {
            let error =
                r#"{"error":"invalid_client","error_description":"wrong client or secret"}"#;
            ("401 Unauthorized", error.to_owned())
        } else {
            self.issued.fetch_add(1, Ordering::Relaxed);
            ("200 OK", issue(&grant))
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{answer}",
            answer.len()
        )
        .context("the answer")
    }
}

fn issue(grant: &Grant) -> String {
    let now = SystemClock.now().as_secs();
    let expires = now + grant.lifetime.as_secs();
    let claims = format!(
        r#"{{"sub":"{}","scope":"{}","iat":{now},"exp":{expires}}}"#,
        grant.client, grant.scope
    );
    let part = |json: &str| base64(json.as_bytes(), BARE);
    let token = format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims));
    format!(
        r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{}}}"#,
        grant.lifetime.as_secs()
    )
}

/// The alphabet's last two characters, and what fills the last group.
const PADDED: (&[u8; 2], &str) = (b"+/", "=");
const BARE: (&[u8; 2], &str) = (b"-_", "");

fn base64(bytes: &[u8], (last, fill): (&[u8; 2], &str)) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            if place > group.len() {
                text.push_str(fill);
                continue;
            }
            let value = u8::try_from(bits >> (18 - 6 * place) & 63).unwrap_or(0);
            text.push(char::from(match value {
                0..=25 => b'A' + value,
                26..=51 => b'a' + value - 26,
                52..=61 => b'0' + value - 52,
                62 => last[0],
                _ => last[1],
            }));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_others_write_it() {
        for (plain, padded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes(), PADDED), padded);
            assert_eq!(base64(plain.as_bytes(), BARE), padded.trim_end_matches('='));
        }
        assert_eq!(base64(&[251, 255], PADDED), "+/8=");
        assert_eq!(base64(&[251, 255], BARE), "-_8");
    }
}
