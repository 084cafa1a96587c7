//! Values, and the results of expressions and aggregates.

use std::cmp::Ordering;

/// One value.
#[derive(Clone, Debug)]
pub enum Datum {
    Null,
    Boolean(bool),
    /// INTEGER and BIGINT.
    Integer(i64),
    Double(f64),
    /// `units / 10^scale`.
    Decimal {
        units: i128,
        scale: u8,
    },
    Text(String),
    /// Microseconds since 1970.
    Timestamp(i64),
}

impl Datum {
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// A whole number; `None` for NULL and other types.
    pub fn integer(&self) -> Option<i64> {
        if let Self::Integer(value) = self { Some(*value) } else { None }
    }

    pub fn double(&self) -> Option<f64> {
        if let Self::Double(value) = self { Some(*value) } else { None }
    }

    pub fn text(&self) -> Option<&str> {
        if let Self::Text(value) = self { Some(value) } else { None }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Boolean(_) => 1,
            Self::Integer(_) => 2,
            Self::Double(_) => 3,
            Self::Decimal { .. } => 4,
            Self::Text(_) => 5,
            Self::Timestamp(_) => 6,
        }
    }
}

/// Maps both zeros to one and every NaN to one above all numbers.
fn canonical(value: f64) -> f64 {
    if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN.abs()
    } else {
        value
    }
}

/// The order of GROUP BY: NULL equals NULL and comes first, -0.0 equals 0.0, NaN equals NaN.
impl Ord for Datum {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::Integer(a), Self::Integer(b)) | (Self::Timestamp(a), Self::Timestamp(b)) => {
                a.cmp(b)
            }
            (Self::Double(a), Self::Double(b)) => canonical(*a).total_cmp(&canonical(*b)),
            (Self::Decimal { units: a, scale }, Self::Decimal { units: b, scale: other })
                if scale == other =>
            {
                a.cmp(b)
            }
            (Self::Decimal { scale, .. }, Self::Decimal { scale: other, .. }) => scale.cmp(other),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (_, _) => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Datum {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Datum {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Datum {}

/// The value of an expression, or the reason why it has none.
pub type Evaluated = Result<Datum, String>;

/// An aggregate function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    CountStar,
    Count,
    Sum,
    Min,
    Max,
    Avg,
}
