//! What the program counts.

/// The sum of the samples called `name` that have all of `labels`; 0 if there is none.
///
/// `text` is in the OpenMetrics text format. Values of labels must not contain commas or quotes.
///
/// # Panics
///
/// If a sample's value is no number.
pub fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| sample(line, name, labels)).sum()
}

fn sample(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let (series, value) = line.rsplit_once(' ')?;
    let (its_name, its_labels) = series.split_once('{').unwrap_or((series, ""));
    let its_labels: Vec<&str> = its_labels.trim_end_matches('}').split(',').collect();
    let has = |(key, value): &(&str, &str)| its_labels.contains(&&*format!("{key}=\"{value}\""));
    (its_name == name && labels.iter().all(has)).then(|| value.parse().unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_chosen_by_name_and_labels() {
        let text =
            "# HELP a_total A.\na_total{x=\"1\",y=\"2\"} 3\na_total{x=\"1\",y=\"4\"} 5\na 7\n";
        assert_eq!(sum(text, "a_total", &[("x", "1")]), 8.0);
        assert_eq!(sum(text, "a_total", &[("x", "1"), ("y", "4")]), 5.0);
        assert_eq!(sum(text, "a", &[]), 7.0);
        assert_eq!(sum(text, "b", &[]), 0.0);
    }
}
