//! Suggests names: "did you mean …?"

/// The most similar name, if one is similar enough.
pub(crate) fn nearest<'a>(
    wanted: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    let near = wanted.chars().count().div_ceil(3).min(3);
    let scored = names.into_iter().map(|name| (distance(&wanted, &name.to_lowercase()), name));
    scored.filter(|(distance, _)| *distance <= near).min().map(|(_, name)| name)
}

/// "did you mean x?", or a list of all names.
pub(crate) fn or_list<'a>(
    wanted: &str,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    match nearest(wanted, names.clone()) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("there are: {}", names.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// The Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_suggested_and_a_far_one_is_not() {
        let names = ["origin", "dest", "dep_delay"];
        assert_eq!(nearest("orgin", names), Some("origin"));
        assert_eq!(nearest("Dep_Dely", names), Some("dep_delay"));
        assert_eq!(nearest("carrier", names), None);
        assert_eq!(nearest("x", names), None);
    }
}
