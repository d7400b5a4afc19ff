//! Patterns of repository names.

/// Whether `name` is one of those that `pattern` stands for: `*` is any run of characters within a
/// path component, `**` any run at all, everything else is itself.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let Some(star) = pattern.find('*') else {
        return pattern == name;
    };
    let (before, stars) = pattern.split_at(star);
    let Some(rest) = name.strip_prefix(before) else {
        return false;
    };
    let after = stars.trim_start_matches('*');
    let is_deep = stars.len() - after.len() > 1;
    // Each place where the star may end; names have 255 bytes at most, patterns few stars.
    let ends = (0..=rest.len()).filter(|end| rest.is_char_boundary(*end));
    ends.take_while(|end| is_deep || !rest[..*end].contains('/'))
        .any(|end| matches(after, &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_within_a_component_and_two_do_not() {
        for (pattern, name) in [
            ("library/alpine", "library/alpine"),
            ("library/*", "library/alpine"),
            ("*/alpine", "library/alpine"),
            ("a*c", "abc"),
            ("a*c", "ac"),
            ("**", "a/b/c"),
            ("a/**", "a/b/c"),
            ("**/c", "a/b/c"),
            ("a/*/c", "a/b/c"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("library/*", "library/a/b"),
            ("*", "a/b"),
            ("library", "library/alpine"),
            ("a*c", "abcd"),
            ("a/**", "a"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
