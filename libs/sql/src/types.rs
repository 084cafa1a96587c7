//! Maps the type names of SQL to column types.

use headwater_types::DataType;
use sqlparser::{
    ast::{DataType as SqlType, ExactNumberInfo, TimezoneInfo},
    tokenizer::Location,
};

use crate::lexer::{Result, refuse};

const TYPES: &str = "write BOOLEAN, INTEGER, BIGINT, DOUBLE, DECIMAL(p,s), VARCHAR or TIMESTAMP";

/// The column type for a type name of PostgreSQL.
pub(crate) fn data_type(sql: &SqlType, at: Location) -> Result<DataType> {
    Ok(match sql {
        SqlType::Boolean | SqlType::Bool => DataType::Boolean,
        SqlType::Integer(None) | SqlType::Int(None) | SqlType::Int4(None) => DataType::Integer,
        SqlType::BigInt(None) | SqlType::Int8(None) => DataType::BigInt,
        SqlType::Double(ExactNumberInfo::None) | SqlType::DoublePrecision | SqlType::Float8 => {
            DataType::Double
        }
        SqlType::Decimal(info) | SqlType::Numeric(info) | SqlType::Dec(info) => decimal(*info, at)?,
        SqlType::Varchar(None)
        | SqlType::Text
        | SqlType::String(None)
        | SqlType::CharacterVarying(None) => DataType::Varchar,
        SqlType::Timestamp(
            None,
            TimezoneInfo::None | TimezoneInfo::WithTimeZone | TimezoneInfo::Tz,
        ) => DataType::Timestamp,
        SqlType::Timestamp(None, TimezoneInfo::WithoutTimeZone) | SqlType::Datetime(_) => {
            return refuse(at, format!("{sql} has no time zone"), "write TIMESTAMP, which is UTC");
        }
        SqlType::Timestamp(Some(_), _) => {
            return refuse(
                at,
                format!("{sql} limits the decimals of seconds"),
                "write TIMESTAMP, which has six",
            );
        }
        SqlType::TinyInt(_) | SqlType::SmallInt(_) | SqlType::Int2(_) => {
            return refuse(at, format!("{sql} is not supported"), "write INTEGER");
        }
        SqlType::Integer(_) | SqlType::Int(_) | SqlType::Int4(_) => {
            return refuse(
                at,
                format!("{sql} says how wide a number is displayed"),
                "write INTEGER",
            );
        }
        SqlType::Real | SqlType::Float4 | SqlType::Float(_) | SqlType::Double(_) => {
            return refuse(at, format!("{sql} is not supported"), "write DOUBLE");
        }
        SqlType::Varchar(_)
        | SqlType::CharacterVarying(_)
        | SqlType::Char(_)
        | SqlType::Character(_) => {
            return refuse(
                at,
                format!("{sql} limits the length of text, which is not checked"),
                "write VARCHAR",
            );
        }
        SqlType::Date => {
            let instead = "write TIMESTAMP, or VARCHAR if no time of day is known";
            return refuse(at, "DATE is not a type of columns", instead);
        }
        SqlType::JSON | SqlType::JSONB => {
            let instead =
                "declare the fields that a view needs as columns; other fields are passed over";
            return refuse(at, format!("{sql} is not supported"), instead);
        }
        other => return refuse(at, format!("{other} is not a known type"), TYPES),
    })
}

fn decimal(info: ExactNumberInfo, at: Location) -> Result<DataType> {
    let instead =
        "write DECIMAL(p,s) with 1 to 38 digits in all and s of them, 0 to p, behind the point";
    let (precision, scale) = match info {
        ExactNumberInfo::PrecisionAndScale(precision, scale) => {
            (i128::from(precision), i128::from(scale))
        }
        ExactNumberInfo::Precision(precision) => (i128::from(precision), 0),
        ExactNumberInfo::None => return refuse(at, "DECIMAL needs its digits", instead),
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if scale <= precision => {
            Ok(DataType::Decimal { precision, scale })
        }
        _ => refuse(at, format!("DECIMAL({precision},{scale}) does not exist"), instead),
    }
}

/// The normal form of a type.
pub(crate) fn canonical(data_type: DataType) -> SqlType {
    match data_type {
        DataType::Boolean => SqlType::Boolean,
        DataType::Integer => SqlType::Integer(None),
        DataType::BigInt => SqlType::BigInt(None),
        DataType::Double => SqlType::Double(ExactNumberInfo::None),
        DataType::Decimal { precision, scale } => {
            SqlType::Decimal(ExactNumberInfo::PrecisionAndScale(precision.into(), scale.into()))
        }
        DataType::Varchar => SqlType::Varchar(None),
        DataType::Timestamp => SqlType::Timestamp(None, TimezoneInfo::None),
    }
}
