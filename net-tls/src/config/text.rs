//! Values that a file has as text.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

pub(super) fn parsed<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| D::Error::custom(format!("`{text}` is {error}")))
}

pub(super) fn maybe_parsed<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    parsed(deserializer).map(Some)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    span(&text).ok_or_else(|| {
        D::Error::custom(format!(
            "`{text}` is not a duration: a number and ms, s, m or h, as in \"30s\""
        ))
    })
}

pub(super) fn maybe_duration<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    duration(deserializer).map(Some)
}

/// More than nothing, and at most a year.
fn span(text: &str) -> Option<Duration> {
    let digits = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return None,
    };
    const YEAR_MS: u64 = 365 * 24 * 3600 * 1000;
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (1..=YEAR_MS).contains(&ms).then(|| Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        assert_eq!(span("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(span("10s"), Some(Duration::from_secs(10)));
        assert_eq!(span("5m"), Some(Duration::from_secs(300)));
        assert_eq!(span("1h"), Some(Duration::from_secs(3600)));
        for bad in ["", "10", "s", "-1s", "1.5s", "0s", "1 s", "99999999999999999999s", "9000000h"]
        {
            assert_eq!(span(bad), None, "{bad}");
        }
    }
}
