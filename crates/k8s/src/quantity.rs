//! Amounts as Kubernetes writes them.

/// How many bytes a quantity is.
///
/// Source: Kubernetes API, `resource.Quantity`.
pub fn bytes(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1048576.0),
        ("Gi", 1073741824.0),
        ("Ti", 1099511627776.0),
        ("Pi", 1125899906842624.0),
        ("Ei", 1152921504606846976.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
        ("", 1.0),
    ];
    let (number, factor) =
        SUFFIXES.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))?;
    let is_number = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
    number.chars().all(is_number).then_some(())?;
    number.parse::<f64>().ok().filter(|it| it.is_finite()).map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_both_kinds_and_with_exponents_are_read() {
        assert_eq!(bytes("10Gi"), Some(10.0 * 1073741824.0));
        assert_eq!(bytes("1500m"), Some(1.5));
        assert_eq!(bytes("1e3"), Some(1000.0));
        assert_eq!(bytes("2G"), Some(2e9));
        for wrong in ["", "Gi", "1 Gi", "1GiB", "inf"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
