//! Real events: 27,004 departures from New York in January 2013.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::PathBuf,
};

use flate2::read::GzDecoder;
use headwater_types::{Column, DataType, Name, StreamDefinition};

/// The number of events in the file.
pub const COUNT: usize = 27_004;

/// The path of the file.
pub fn path() -> PathBuf {
    let example = "../../examples/flights/flights-2013-01.ndjson.gz";
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(example)
}

/// The events as JSON, in the order in which they became known.
pub fn lines() -> io::Result<Vec<String>> {
    BufReader::new(GzDecoder::new(File::open(path())?)).lines().collect()
}

/// The stream of these events, keyed by origin. Event time is `scheduled`.
pub fn stream(partitions: u32, watermark_delay_micros: i64) -> StreamDefinition {
    let text = DataType::Varchar;
    let column =
        |name: &str, data_type, nullable| Column { name: name.to_owned(), data_type, nullable };
    let name = Name::new("flights").unwrap_or_else(|error| panic!("{error}"));
    StreamDefinition {
        topic: name.clone(),
        name,
        sql: String::new(),
        columns: vec![
            column("flight", text, false),
            column("carrier", text, false),
            column("tail", text, true),
            column("origin", text, false),
            column("dest", text, false),
            column("scheduled", DataType::Timestamp, false),
            column("departed", DataType::Timestamp, true),
            column("dep_delay", DataType::Integer, true),
            column("arr_delay", DataType::Integer, true),
            column("air_time", DataType::Integer, true),
            column("distance", DataType::Integer, true),
        ],
        event_time: 5,
        watermark_delay_micros,
        partitions,
        key: Some(3),
        max_future_micros: i64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Event;

    #[test]
    fn every_line_of_the_file_is_an_event_of_the_stream() {
        let stream = stream(1, 0);
        let all: Vec<usize> = (0..stream.columns.len()).collect();
        let lines = lines().unwrap();
        assert_eq!(lines.len(), COUNT);
        for line in &lines {
            if let Err(reason) = Event::decode(&stream, &all, line.as_bytes()) {
                panic!("{line}: {reason}");
            }
        }
    }
}
