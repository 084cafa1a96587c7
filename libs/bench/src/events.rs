//! The measured events: 158 bytes of JSON, 8 fields, 10,000 keys.

use headwater_log::{BatchBuilder, Chunk};
use headwater_types::Offset;

pub const EVENT_BYTES: usize = 158;
pub const KEYS: u64 = 10_000;
/// 2020-01-01T00:00:00Z in milliseconds.
const START_MS: u64 = 1_577_836_800_000;
/// Events per millisecond of event time: 2,000 a second.
const PER_MS: u64 = 2;

pub const STREAM: &str = "\
CREATE STREAM orders (
  order_id BIGINT, user_id BIGINT, amount DOUBLE, quantity INTEGER,
  country VARCHAR, status VARCHAR, session VARCHAR, ts TIMESTAMP NOT NULL,
  WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 4);
";

pub const VIEW: &str = "\
CREATE MATERIALIZED VIEW spend_per_minute
WITH (allowed_lateness = '10 minutes', retention = '30 days') AS
SELECT user_id, window_start, window_end,
       count(*) AS orders, sum(amount) AS spend, min(amount) AS least, max(amount) AS most
FROM TUMBLE(orders, ts, INTERVAL '1 minute')
WHERE amount > 0
GROUP BY user_id, window_start, window_end
EMIT ON UPDATE;
";

/// The event with this number. One in a hundred is filtered out. Event times are up to 3 seconds
/// out of order.
pub fn event(number: u64) -> String {
    // A multiplicative generator instead of a random one, so that every run is the same.
    let random = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let cents = if number % 100 == 99 { 0 } else { 1 + (random >> 16) % 99_999 };
    let ts = timestamp_ms(number) - (random >> 8) % 3_000;
    let head = format!(
        r#"{{"order_id":{:08},"user_id":{},"amount":{}.{:02},"quantity":{},"country":"DE","status":"paid","session":""#,
        10_000_000 + number,
        user(number),
        cents / 100,
        cents % 100,
        1 + random % 9,
    );
    let tail = format!(r#"","ts":{ts}}}"#);
    let session = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let missing = EVENT_BYTES.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", &session[..missing.min(session.len())])
}

/// The key of the event with this number.
pub fn user(number: u64) -> u64 {
    10_000 + ((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % KEYS
}

/// The time at which the event arrives.
pub fn timestamp_ms(number: u64) -> u64 {
    START_MS + 10_000 + number / PER_MS
}

/// Events in the form in which a log reader returns them: chunks of 5 batches of 1,000.
pub fn chunks(events: u64) -> Vec<Chunk> {
    let batch = |base: u64| {
        let mut builder = BatchBuilder::with_capacity(200_000);
        for number in base..base + 1_000 {
            let (key, value) = (user(number).to_string(), event(number));
            builder.push(
                timestamp_ms(number) as i64,
                Some(key.as_bytes()),
                Some(value.as_bytes()),
                &[],
            );
        }
        builder.build().map(|mut batch| {
            batch.assign(Offset(base));
            batch.into_bytes()
        })
    };
    let chunk = |first: u64| {
        let bytes: Vec<u8> =
            (first..first + 5_000).step_by(1_000).filter_map(batch).flatten().collect();
        Chunk::new(bytes, Offset(first + 5_000))
    };
    (0..events).step_by(5_000).map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_the_size_that_the_figures_are_for() {
        for number in (0..3_000_000).step_by(9_973) {
            assert_eq!(event(number).len(), EVENT_BYTES, "{}", event(number));
        }
    }
}
