//! Batches of a query's result as its answer carries them.

use arrow::{array::RecordBatch, datatypes::Schema, ipc::writer::StreamWriter};
use headwater_proto::query::v1::{QueryResponse, ResultFormat};

use crate::{
    error::Error,
    messages::{MESSAGE_BYTES, split},
    row_values,
};

/// Turns batches into parts of the answer.
pub(super) enum Encoder {
    Rows,
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl Encoder {
    pub(super) fn new(format: ResultFormat, schema: &Schema) -> Result<Self, Error> {
        match format {
            ResultFormat::Unspecified | ResultFormat::Rows => Ok(Self::Rows),
            ResultFormat::Arrow => {
                Ok(Self::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema)?)))
            }
        }
    }

    /// The beginning of the first part, with the schema of an Arrow stream.
    pub(super) fn head(&mut self) -> QueryResponse {
        let arrow = match self {
            Self::Rows => Vec::new(),
            Self::Arrow(writer) => std::mem::take(writer.get_mut()),
        };
        QueryResponse { arrow, ..QueryResponse::default() }
    }

    pub(super) fn parts(&mut self, batch: &RecordBatch) -> Result<Vec<QueryResponse>, Error> {
        match self {
            Self::Rows => {
                let messages = split(row_values::rows(batch)?).into_iter();
                Ok(messages
                    .map(|rows| QueryResponse { rows, ..QueryResponse::default() })
                    .collect())
            }
            Self::Arrow(writer) => {
                writer.write(batch)?;
                Ok(pieces(std::mem::take(writer.get_mut())))
            }
        }
    }

    pub(super) fn tail(self) -> Result<Vec<QueryResponse>, Error> {
        match self {
            Self::Rows => Ok(Vec::new()),
            Self::Arrow(mut writer) => {
                writer.finish()?;
                Ok(pieces(std::mem::take(writer.get_mut())))
            }
        }
    }
}

fn pieces(stream: Vec<u8>) -> Vec<QueryResponse> {
    let piece = |arrow: &[u8]| QueryResponse { arrow: arrow.to_vec(), ..QueryResponse::default() };
    stream.chunks(MESSAGE_BYTES).map(piece).collect()
}
