//! Measures how soon `headwater dev` is ready on existing data.

use std::path::Path;

use crate::{
    figures::{Better, Figure, quantile},
    server::Dev,
};

const STARTS: usize = 5;

/// No running server may use `data`.
pub fn measure(data: &Path) -> anyhow::Result<Vec<Figure>> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let dev = Dev::start(data)?;
        times.push(dev.ready_after.as_secs_f64());
        dev.stop()?;
    }
    Ok(vec![
        Figure::new(
            "start on existing data, median of 5",
            quantile(&mut times, 0.5),
            "s",
            Better::Lower,
        )
        .must(1.0),
        Figure::new(
            "start on existing data, slowest of 5",
            quantile(&mut times, 1.0),
            "s",
            Better::Lower,
        ),
    ])
}
