//! What commands that write to an OCI registry have in common.

use std::path::PathBuf;
use std::sync::Arc;

use super::failure::Failure;
use super::shared::{Context, given};
use crate::client;
use crate::config::{Overrides, value};
use crate::credentials::docker::LoginFiles;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::publish::oci::Remote;
use crate::source::http::{HttpClient, HttpSettings};
use crate::source::oci::auth::Authenticator;
use crate::source::oci::reference::Endpoint;

/// Which registry, and as whom.
#[derive(clap::Args)]
#[command(next_help_heading = "OCI registry")]
pub(super) struct OciArgs {
    /// The registry, [http[s]://]HOST[:PORT][/PREFIX]; without a scheme https, on this machine http
    /// [env: MUSHER_OCI_REGISTRY_URL]
    // Not parsed by clap, which would repeat a password in it.
    #[arg(long, value_name = "HOST")]
    pub(super) oci: Option<String>,

    /// Log in as this user; otherwise as `docker login` or `podman login` have noted
    /// [env: MUSHERFS_OCI_USER]
    #[arg(long, value_name = "NAME")]
    oci_user: Option<String>,

    /// Read the password from this file, which only its owner may be able to read; otherwise it is
    /// MUSHERFS_OCI_PASSWORD
    #[arg(long, value_name = "FILE")]
    oci_password_file: Option<PathBuf>,

    /// Trust the certificates in this PEM file, besides the system's
    /// [env: MUSHER_NETWORK_CA_CERT_FILE]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Allow http to registries on other machines; anybody in between can read the password
    /// [env: MUSHERFS_INSECURE_HTTP]
    #[arg(long)]
    insecure_http: bool,
}

impl OciArgs {
    /// The registry, ready to be written to. Contacts nobody.
    pub(super) fn remote(&self) -> Result<Remote, Failure> {
        let oci = self.oci.as_deref().map(value::registry).transpose();
        let overrides = Overrides {
            oci_registry_url: oci.map_err(|error| Failure::usage(format!("--oci: {error}")))?,
            oci_user: self.oci_user.clone(),
            oci_password_file: self.oci_password_file.clone(),
            ca_file: self.ca_file.clone(),
            insecure_http: given(self.insecure_http),
            ..Overrides::default()
        };
        let context = Context::load(overrides, None)?;
        context.log_warnings();
        Self::of(&context)
    }

    /// The OCI registry that the settings name. Contacts nobody.
    pub(super) fn of(context: &Context) -> Result<Remote, Failure> {
        let config = &context.config;
        let url = config.oci_registry_url.value.as_ref().ok_or_else(|| {
            Failure::usage("no registry to write to").with_hint(Some(
                "name it with --oci, such as --oci registry.example.com/team or --oci localhost:5000",
            ))
        })?;
        let endpoint = Endpoint::from_url(url)
            .map_err(|error| Failure::from(Error::Config(error.to_string())))?;
        let http = HttpClient::new(&HttpSettings {
            ca_file: config.ca_file.value.clone(),
            insecure_http: config.insecure_http.value,
            metrics: Arc::new(Metrics::default()),
        })?;
        let files = LoginFiles::from_env();
        let logins = client::logins(config, context.key_chain()?, files, &endpoint)?;
        let authenticator = Authenticator::new(http.clone(), endpoint.clone(), logins);
        Ok(Remote::new(
            endpoint,
            http,
            Arc::new(authenticator),
            config.content_timeout.value,
        )?)
    }
}
