//! Amounts of bytes as people write and read them.

/// Why a text is no amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an amount of bytes; write a number with a unit, such as 64Mi, 100GB or 1.5TiB"
)]
pub struct ParseSizeError(String);

/// Factors of the units that are understood. `B` may follow each; without a unit it is bytes.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1000),
    ("Ki", 1 << 10),
    ("M", 1000_u64.pow(2)),
    ("Mi", 1 << 20),
    ("G", 1000_u64.pow(3)),
    ("Gi", 1 << 30),
    ("T", 1000_u64.pow(4)),
    ("Ti", 1 << 40),
];

/// Reads an amount of bytes: Kubernetes' quantities (`64Mi`, `100G`) and their common spellings
/// (`64MiB`, `100 GB`). Decimals are rounded down to whole bytes.
///
/// # Errors
///
/// The text has no number, an unknown unit, or is more than 2⁶⁴ bytes.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let wrong = || ParseSizeError(text.chars().take(40).collect());
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let unit = unit.trim_start();
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| *name == unit || (unit == "K" && *name == "k"))
        .ok_or_else(wrong)?;
    let size = match number.split_once('.') {
        None => number.parse::<u64>().ok().and_then(|whole| whole.checked_mul(*factor)),
        Some((whole, decimals)) => with_decimals(whole, decimals, *factor),
    };
    size.ok_or_else(wrong)
}

fn with_decimals(whole: &str, decimals: &str, factor: u64) -> Option<u64> {
    if decimals.is_empty() || decimals.len() > 9 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    let whole = u128::from(whole.parse::<u64>().ok()?);
    let decimals = u128::from(decimals.parse::<u64>().ok()?);
    let scaled = (whole * scale + decimals).checked_mul(u128::from(factor))?;
    u64::try_from(scaled / scale).ok()
}

/// An amount of bytes for people: three digits and a binary unit, `1.50 GiB`.
pub fn human_size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_decimal_or_binary_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64Mi", 64 << 20),
            ("64MiB", 64 << 20),
            ("100GB", 100_000_000_000),
            ("100 GB", 100_000_000_000),
            ("1k", 1000),
            ("1K", 1000),
            ("1.5Gi", 3 << 29),
            (" 2Ti ", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "",
            "Mi",
            "-1",
            "1m",
            "1.G",
            "1e3",
            "99999999Ti",
            "7099919590010375746.039919599T",
            "1 2",
            "10%",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_three_digits() {
        assert_eq!(human_size(1023), "1023 B");
        assert_eq!(human_size(1536), "1.50 KiB");
        assert_eq!(human_size(256 << 20), "256 MiB");
        assert_eq!(human_size(1_000_000_000), "954 MiB");
        assert_eq!(human_size(u64::MAX), "16.0 EiB");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9.]{0,25} ?\\PC{0,4}") {
            let _ = parse_size(&text);
        }
    }
}
