//! Answers on their way out: each request is measured, each error becomes a status.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use tonic::{Code, Response, Status};

use crate::{error::Error, metrics::Measured};

pub(super) type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(super) fn answered<T>(
    mut measured: Measured,
    answer: Result<T, Error>,
    rows: impl Fn(&T) -> usize,
) -> Result<Response<T>, Status> {
    match answer {
        Ok(answer) => {
            measured.rows(rows(&answer));
            measured.end(Code::Ok);
            Ok(Response::new(answer))
        }
        Err(error) => Err(refused(&mut measured, error)),
    }
}

pub(super) fn streamed<T: 'static>(
    mut measured: Measured,
    answer: Result<impl Stream<Item = Result<T, Error>> + Send + 'static, Error>,
    rows: fn(&T) -> usize,
) -> Result<Response<BoxStream<T>>, Status> {
    match answer {
        Ok(parts) => {
            Ok(Response::new(Box::pin(MeasuredStream { parts: Box::pin(parts), measured, rows })))
        }
        Err(error) => Err(refused(&mut measured, error)),
    }
}

fn refused(measured: &mut Measured, error: Error) -> Status {
    measured.end(error.code());
    if matches!(error.code(), Code::Internal | Code::DataLoss) {
        tracing::error!(%error, "a request could not be answered");
    }
    error.into()
}

/// An answer in parts, measured until its end.
struct MeasuredStream<S, T> {
    parts: Pin<Box<S>>,
    measured: Measured,
    rows: fn(&T) -> usize,
}

impl<S: Stream<Item = Result<T, Error>>, T> Stream for MeasuredStream<S, T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.parts.as_mut().poll_next(context).map(|part| match part {
            Some(Ok(part)) => {
                this.measured.rows((this.rows)(&part));
                Some(Ok(part))
            }
            Some(Err(error)) => Some(Err(refused(&mut this.measured, error))),
            None => {
                this.measured.end(Code::Ok);
                None
            }
        })
    }
}
