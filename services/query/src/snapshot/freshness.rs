//! The `Freshness` of a request, checked and with its times fixed.

use std::time::{Duration, Instant};

use headwater_proto::query::v1::Freshness;
use headwater_types::Token;

use crate::{config::Config, error::Error};

/// How fresh an answer has to be, and from which generation.
pub(crate) struct FreshnessRequest {
    pub tokens: Vec<Token>,
    /// The generation that was asked for by its id.
    pub generation: Option<String>,
    /// The answer has every commit that is older than this.
    pub since: Instant,
    pub deadline: Instant,
}

impl FreshnessRequest {
    pub(crate) fn new(config: &Config, asked: Option<&Freshness>) -> Result<Self, Error> {
        let now = Instant::now();
        let mut request = Self {
            tokens: Vec::new(),
            generation: None,
            since: now.checked_sub(config.max_staleness).unwrap_or(now),
            deadline: now + config.default_timeout,
        };
        if let Some(asked) = asked {
            request.tokens =
                asked.after.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
            request.generation = Some(asked.generation.clone()).filter(|id| !id.is_empty());
            if asked.timeout_ms > 0 {
                let timeout = Duration::from_millis(asked.timeout_ms);
                request.deadline = now + timeout.min(config.max_timeout);
            }
        }
        Ok(request)
    }

    /// Asks for everything that was committed before now.
    pub(crate) fn now(deadline: Instant) -> Self {
        Self { tokens: Vec::new(), generation: None, since: Instant::now(), deadline }
    }
}
