//! Resources as YAML, in files and on stdout.

use kube::CustomResourceExt as _;
use serde::Serialize;
use serde_json::Value;

use crate::RegistryCache;

/// Why a text is not YAML that can be read.
#[derive(Debug, thiserror::Error)]
#[error("not YAML: {0}")]
pub struct ParseYamlError(String);

/// The documents of a YAML file. Empty ones are left out.
///
/// # Errors
///
/// [`ParseYamlError`], which names the line.
pub fn documents(text: &str) -> Result<Vec<Value>, ParseYamlError> {
    let parsed = serde_saphyr::from_multiple::<Value>(text);
    let documents = parsed.map_err(|error| ParseYamlError(error.to_string()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// One document, which begins with `---`.
///
/// # Panics
///
/// If `object` has a map whose keys are no text; ours have none.
pub fn document(object: &impl Serialize) -> String {
    // By way of JSON, so that what is not there leaves nothing behind.
    let value = serde_json::to_value(object).expect("our types have text for keys");
    let text = serde_saphyr::to_string(&value).expect("JSON can be written as YAML");
    format!("---\n{text}")
}

/// The definitions of all our resources.
pub fn definitions() -> String {
    document(&RegistryCache::crd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_those_that_are_installed() {
        let installed = include_str!("../../../deploy/crds/larder.dev.yaml");
        assert!(
            installed == definitions(),
            "write them anew: larder crds > deploy/crds/larder.dev.yaml"
        );
    }

    #[test]
    fn the_chart_has_the_same_definitions() {
        let of_chart = include_str!("../../../deploy/helm/larder/crds/larder.dev.yaml");
        assert!(of_chart == definitions(), "copy them: cp deploy/crds/* deploy/helm/larder/crds/");
    }

    #[test]
    fn several_documents_are_told_apart() {
        let read = documents("---\na: 1\n---\n---\nb: [x]\n").unwrap();
        assert_eq!(read, [serde_json::json!({"a": 1}), serde_json::json!({"b": ["x"]})]);
        assert!(documents("a: [").unwrap_err().to_string().starts_with("not YAML"));
    }
}
