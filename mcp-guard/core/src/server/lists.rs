//! The options of the tools, by what follows them. Each list names the version and the source it was taken from. "Not
//! compared" means that no version was at hand.
//!
//! `VALUES` take the next word as their value, `FLAGS` do not. A `*` at the end stands for any ending. A list
//! may be incomplete: an option that is in none, with a word behind it, makes the start unclear.

// npm 11.19.1, `@npmcli/config/lib/definitions` (types without `Boolean` take a value, and those with
// `String` beside it), its `shorthands.js`, and what `npx-cli.js` removed.
pub(super) const NPM_VALUES: &str = "\
    --_auth --access --allow-directory --allow-file --allow-git --allow-remote --allow-scripts \
    --also --audit-level --auth-type --before --browser --ca --cache --cache-max --cache-min \
    --cafile --cert --cidr --color --cpu --depth --diff --diff-dst-prefix --diff-src-prefix \
    --diff-unified --editor --expect-result-count --expires --fetch-retries --fetch-retry-factor \
    --fetch-retry-maxtimeout --fetch-retry-mintimeout --fetch-timeout --git --globalconfig \
    --heading --https-proxy --include --init-author-email --init-author-name --init-author-url \
    --init-license --init-module --init-type --init-version --init.author.email \
    --init.author.name --init.author.url --init.license --init.module --init.version \
    --install-strategy --key --libc --local-address --location --lockfile-version --loglevel \
    --logs-dir --logs-max --name --maxsockets --message --min-release-age \
    --min-release-age-exclude --node-gyp --node-options --noproxy --omit --only --orgs --os \
    --otp --pack-destination --packages --preid --provenance-file --proxy --registry \
    --replace-registry-host --save-prefix --sbom-format --sbom-type --scope --scopes \
    --packages-and-scopes-permission --orgs-permission --password --token-description \
    --script-shell --searchexclude --searchlimit --searchopts --searchstaleness --shell --tag \
    --tag-version-prefix --umask --user-agent --userconfig --viewer --which --workspace -L -m -w \
    --reg --enjoy-by --npm --node-arg";
pub(super) const NPM_FLAGS: &str = "\
    --all --allow-same-version --audit --bin-links --bypass-2fa --commit-hooks \
    --dangerously-allow-all-scripts --description --dev --diff-ignore-all-space --diff-name-only \
    --diff-no-prefix --diff-text --dry-run --engine-strict --expect-results --force \
    --foreground-scripts --format-package-lock --fund --git-tag-version --global --global-style \
    --if-present --ignore-scripts --include-staged --include-workspace-root \
    --include-attestations --init-private --install-links --json --legacy-bundling \
    --legacy-peer-deps --link --long --offline --omit-lockfile-registry-resolved --optional \
    --package-lock --package-lock-only --parseable --allow-scripts-pending --allow-scripts-pin \
    --prefer-dedupe --prefer-offline --prefer-online --production --progress --provenance \
    --read-only --rebuild-bundle --save --save-bundle --save-dev --save-exact --save-optional \
    --save-peer --save-prod --packages-all --shrinkwrap --sign-git-commit --sign-git-tag \
    --strict-peer-deps --strict-allow-scripts --strict-ssl --timing --unicode --update-notifier \
    --workspaces --workspaces-update --yes -B -D -E -O -P -S -a -d -dd -ddd -f -g -iwr -l -q -s \
    -ws -y --always-spawn --desc --ignore-existing --iwr --local --no --no-install \
    --porcelain --quiet --readonly --shell-auto-fallback --silent --verbose --ws --no-*";

// pnpm 10.34.9: the option types in `dist/pnpm.cjs`, and `pnpm dlx --help`.
pub(super) const PNPM_VALUES: &str = "\
    --cache-dir --catalog-mode --child-concurrency --merge-git-branch-lockfiles-branch-pattern \
    --color --config-dir --fetch-timeout --fetch-warn-timeout-ms --fetch-min-speed-ki-bps \
    --fetching-concurrency --filter --filter-prod --git-shallow-hosts --global-bin-dir \
    --global-dir --global-path --global-pnpmfile --hoist-pattern --init-type \
    --link-workspace-packages --lockfile-dir --lockfile-directory --loglevel --maxsockets \
    --modules-cache-max-age --dlx-cache-max-age --minimum-release-age \
    --minimum-release-age-exclude --modules-dir --network-concurrency --node-linker --noproxy \
    --npm-path --only-built-dependencies --pack-destination --pack-gzip-level \
    --package-import-method --patches-dir --pnpmfile --public-hoist-pattern --publish-branch \
    --reporter --resolution-mode --save-catalog-name --script-shell --state-dir --store-dir \
    --trust-policy --trust-policy-exclude --trust-policy-ignore-after --use-node-version \
    --global-virtual-store-dir --virtual-store-dir --virtual-store-dir-max-length \
    --peers-suffix-max-length --workspace-concurrency --workspace-packages --test-pattern \
    --changed-files-ignore-pattern --sync-injected-deps-after-scripts --cpu --libc --os \
    --audit-level -F --registry --https-proxy --http-proxy --proxy --local-address --allow-build \
    --cafile --userconfig --user-agent --tag --scope --resume-from --node-options";
pub(super) const PNPM_FLAGS: &str = "\
    --auto-install-peers --bail --ci --merge-git-branch-lockfiles --dangerously-allow-all-builds \
    --deploy-all-files --dedupe-peer-dependents --dedupe-peers --dedupe-direct-deps \
    --dedupe-injected-deps --dev --disallow-workspace-cycles --enable-modules-dir \
    --enable-pre-post-scripts --enable-global-virtual-store --exclude-links-from-lockfile \
    --extend-node-path --force-legacy-deploy --frozen-lockfile --git-checks \
    --git-branch-lockfile --hoist --hoist-workspace-packages --ignore-compatibility-db \
    --ignore-dep-scripts --ignore-pnpmfile --ignore-workspace --ignore-workspace-cycles \
    --ignore-workspace-root-check --optimistic-repeat-install --include-workspace-root \
    --init-package-manager --inject-workspace-packages --legacy-dir-filtering --lockfile \
    --lockfile-include-tarball-url --lockfile-only --manage-package-manager-versions --offline \
    --package-manager-strict --package-manager-strict-version --prefer-frozen-lockfile \
    --prefer-offline --prefer-symlinked-executables --prefer-workspace-packages \
    --preserve-absolute-paths --production --recursive-install --block-exotic-subdeps \
    --resolve-peers-from-workspace-root --aggregate-output --reporter-hide-prefix --save-peer \
    --save-workspace-protocol --shamefully-flatten --shamefully-hoist \
    --shared-workspace-lockfile --shell-emulator --side-effects-cache \
    --side-effects-cache-readonly --symlink --sort --stream --strict-dep-builds \
    --strict-store-pkg-content-check --strict-peer-dependencies --use-beta-cli \
    --use-running-store-server --use-store-server --use-stderr --verify-deps-before-run \
    --verify-store-integrity --workspace-root --embed-readme --update-notifier \
    --registry-supports-time-field --fail-if-no-match -D -P -d -g -q -r -s -w --global \
    --if-present --no-bail --parallel --prod --recursive --report-summary --reverse --silent \
    --yes --no-*";

// uv 0.13.9, `uv tool run --help`. Hidden options are those of its other commands and of older versions that it
// accepts.
pub(super) const UV_TOOL_VALUES: &str = "\
    -w --with --with-editable --with-requirements -c --constraints -b --build-constraints \
    --overrides --env-file --python-platform --torch-backend --index --default-index -i \
    --index-url --extra-index-url -f --find-links --index-strategy --keyring-provider -P \
    --upgrade-package --upgrade-group --resolution --prerelease --prerelease-package \
    --fork-strategy --exclude-newer --exclude-newer-package --no-sources-package \
    --reinstall-package --link-mode -C --config-setting --config-settings-package \
    --no-build-isolation-package --no-build-package --no-binary-package --cache-dir \
    --refresh-package -p --python --color --allow-insecure-host --config-file --preview-features \
    --python-preference --python-fetch --override --trusted-host --generate-shell-completion";
pub(super) const UV_TOOL_FLAGS: &str = "\
    --isolated --no-env-file --lfs --no-index -U --upgrade --no-sources --reinstall \
    --compile-bytecode --no-build-isolation --no-build --no-binary --require-build-hashes \
    --no-require-build-hashes -n --no-cache --refresh --managed-python --no-managed-python \
    --no-python-downloads -q --quiet -v --verbose --system-certs --offline --no-progress \
    --no-config --native-tls --no-native-tls --preview --no-preview --no-color --show-resolution \
    --pre --allow-python-downloads --binary --build --build-isolation --force-reinstall \
    --no-compile --no-compile-bytecode --no-installer-metadata --no-offline --no-refresh \
    --no-reinstall --no-system-certs --no-upgrade --show-settings";

// uv 0.13.9, `uv run --help`, and hidden options as above.
pub(super) const UV_RUN_VALUES: &str = "\
    --extra --no-extra --group --no-group --only-group --no-editable-package --env-file -w \
    --with --with-editable --with-requirements --package --python-platform --index \
    --default-index -i --index-url --extra-index-url -f --find-links --index-strategy \
    --keyring-provider -P --upgrade-package --upgrade-group --resolution --prerelease \
    --prerelease-package --fork-strategy --exclude-newer --exclude-newer-package \
    --no-sources-package --reinstall-package --link-mode -C --config-setting \
    --config-settings-package --no-build-isolation-package --no-build-package \
    --no-binary-package --cache-dir --refresh-package -p --python --color --allow-insecure-host \
    --config-file --preview-features --python-preference --python-fetch --max-recursion-depth \
    --trusted-host";
pub(super) const UV_RUN_FLAGS: &str = "\
    --all-extras --no-dev --only-dev --no-default-groups --all-groups --no-editable --exact \
    --no-env-file --isolated --active --no-sync --locked --frozen --gui-script --all-packages \
    --no-project --no-index -U --upgrade --no-sources --reinstall --compile-bytecode \
    --no-build-isolation --no-build --no-binary --require-build-hashes --no-require-build-hashes \
    -n --no-cache --refresh --managed-python --no-managed-python --no-python-downloads -q \
    --quiet -v --verbose --system-certs --offline --no-progress --no-config --native-tls \
    --no-native-tls --preview --no-preview --allow-python-downloads --no-color --show-resolution \
    --pre --dev --inexact --editable --binary --build --build-isolation --force-reinstall \
    --no-active --no-all-extras --no-compile --no-compile-bytecode --no-exact --no-frozen \
    --no-installer-metadata --no-locked --no-offline --no-refresh --no-reinstall \
    --no-system-certs --no-upgrade --show-settings";

// Docker CLI 28.2.2, `docker run --help`, and its hidden aliases.
pub(super) const DOCKER_RUN_VALUES: &str = "\
    --add-host --annotation -a --attach --blkio-weight --blkio-weight-device --cap-add \
    --cap-drop --cgroup-parent --cgroupns --cidfile --cpu-count --cpu-percent --cpu-period \
    --cpu-quota --cpu-rt-period --cpu-rt-runtime -c --cpu-shares --cpus --cpuset-cpus \
    --cpuset-mems --detach-keys --device --device-cgroup-rule --device-read-bps \
    --device-read-iops --device-write-bps --device-write-iops --dns --dns-option --dns-search \
    --domainname --entrypoint -e --env --env-file --expose --gpus --group-add --health-cmd \
    --health-interval --health-retries --health-start-interval --health-start-period \
    --health-timeout -h --hostname --io-maxbandwidth --io-maxiops --ip --ip6 --ipc --isolation \
    --kernel-memory -l --label --label-file --link --link-local-ip --log-driver --log-opt \
    --mac-address -m --memory --memory-reservation --memory-swap --memory-swappiness --mount \
    --name --network --network-alias --oom-score-adj --pid --pids-limit --platform -p --publish \
    --pull --restart --runtime --security-opt --shm-size --stop-signal --stop-timeout \
    --storage-opt --sysctl --tmpfs --ulimit -u --user --userns --uts -v --volume --volume-driver \
    --volumes-from -w --workdir --net --net-alias --dns-opt";
pub(super) const DOCKER_RUN_FLAGS: &str = "\
    -d --detach --disable-content-trust --init -i --interactive --no-healthcheck \
    --oom-kill-disable --privileged -P --publish-all -q --quiet --read-only --rm --sig-proxy -t \
    --tty --use-api-socket";

// Podman 5.8.2, `cmd/podman/common/create.go` and `netflags.go`, `cmd/podman/containers/run.go`, and the aliases in
// `cmd/podman/utils/alias.go`: those that Docker does not have.
pub(super) const PODMAN_RUN_VALUES: &str = "\
    --arch --authfile --cert-dir --cgroup-conf --cgroups --chrootdirs --conmon-pidfile --creds \
    --decryption-key --env-merge --gidmap --group-entry --health-log-destination \
    --health-max-log-count --health-max-log-size --health-on-failure --health-startup-cmd \
    --health-startup-interval --health-startup-retries --health-startup-success \
    --health-startup-timeout --hosts-file --hostuser --image-volume --init-path --net --os \
    --passwd-entry --personality --pidfile --pod --pod-id-file --preserve-fd --preserve-fds \
    --rdt-class --requires --retry --retry-delay --sdnotify --seccomp-policy --secret \
    --shm-size-systemd --signature-policy --subgidname --subuidname --systemd --timeout --tz \
    --uidmap --umask --unsetenv --variant --healthcheck-command --healthcheck-interval \
    --healthcheck-retries --healthcheck-start-period --healthcheck-timeout --override-arch \
    --override-os --override-variant";
pub(super) const PODMAN_RUN_FLAGS: &str = "\
    --env-host --http-proxy --no-hostname --no-hosts --passwd --read-only-tmpfs --replace --rmi \
    --rootfs --tls-verify --unsetenv-all";

// Node.js 20.20.2 and 26.12.1, `node --help`, and `node --completion-bash` of the latter. Options of V8 take their
// value with `=` only.
pub(super) const NODE_VALUES: &str = "\
    --build-snapshot-config -C --conditions --cpu-prof-dir --cpu-prof-interval --cpu-prof-name \
    --diagnostic-dir --disable-proto --disable-warning --dns-result-order --env-file \
    --env-file-if-exists --experimental-default-type --loader --experimental-loader \
    --experimental-policy --experimental-sea-config --heap-prof-dir --heap-prof-interval \
    --heap-prof-name --heapsnapshot-near-heap-limit --heapsnapshot-signal --icu-data-dir \
    --import --input-type --debug-port --inspect-port --inspect-publish-uid \
    --max-http-header-size --network-family-autoselection-attempt-timeout --openssl-config \
    --policy-integrity --redirect-warnings --report-directory --report-dir --report-filename \
    --report-signal -r --require --secure-heap --secure-heap-min --snapshot-blob \
    --test-concurrency --test-name-pattern --test-reporter --test-reporter-destination \
    --test-shard --test-timeout --title --tls-cipher-list --tls-keylog --trace-event-categories \
    --trace-event-file-pattern --trace-require-module --unhandled-rejections --use-largepages \
    --v8-pool-size --watch-path --allow-fs-read --allow-fs-write --experimental-config-file \
    --localstorage-file --test-coverage-branches --test-coverage-exclude \
    --test-coverage-functions --test-coverage-include --test-coverage-lines --test-global-setup \
    --test-isolation --test-rerun-failures --test-skip-pattern --watch-kill-signal \
    --bench-isolation --bench-name-pattern --bench-reporter --bench-reporter-destination \
    --bench-samples --bench-warmup --build-sea --config-file --es-module-specifier-resolution \
    --experimental-package-map --experimental-specifier-resolution --experimental-test-isolation \
    --experimental-test-tag-filter --max-old-space-size-percentage --process-timeout \
    --security-revert --test-random-seed --vfs-load";
pub(super) const NODE_FLAGS: &str = "\
    --abort-on-uncaught-exception --allow-addons --allow-child-process --allow-wasi \
    --allow-worker --build-snapshot -c --check --cpu-prof --disable-wasm-trap-handler \
    --disallow-code-generation-from-strings --enable-etw-stack-walking --enable-fips \
    --enable-source-maps --experimental-eventsource --experimental-import-meta-resolve \
    --experimental-network-imports --experimental-network-inspection --experimental-permission \
    --experimental-print-required-tla --experimental-test-coverage \
    --experimental-test-module-mocks --experimental-vm-modules --experimental-wasm-modules \
    --experimental-websocket --expose-gc --force-context-aware --force-fips \
    --force-node-api-uncaught-exceptions-policy --frozen-intrinsics --heap-prof \
    --huge-max-old-generation-size --insecure-http-parser --inspect --inspect-brk --inspect-wait \
    -i --interactive --interpreted-frames-native-stack --jitless \
    --enable-network-family-autoselection --node-memory-debug --openssl-legacy-provider \
    --openssl-shared-config --pending-deprecation --preserve-symlinks --preserve-symlinks-main \
    --prof --prof-process --report-compact --report-exclude-network --report-on-fatalerror \
    --report-on-signal --report-uncaught-exception --test --test-force-exit --test-only \
    --throw-deprecation --tls-max-v1.2 --tls-max-v1.3 --tls-min-v1.0 --tls-min-v1.1 \
    --tls-min-v1.2 --tls-min-v1.3 --trace-atomics-wait --trace-deprecation --trace-exit \
    --trace-promises --trace-sigint --trace-sync-io --trace-tls --trace-uncaught \
    --trace-warnings --track-heap-objects --use-bundled-ca --use-openssl-ca --watch \
    --watch-preserve-output --zero-fill-buffers --disable-sigusr1 \
    --experimental-default-config-file --experimental-repl-await --experimental-require-module \
    --experimental-sqlite --experimental-strip-types --experimental-transform-types \
    --experimental-webstorage --expose_gc --permission --allow-net --allow-inspector \
    --test-update-snapshots --trace-env --trace-env-js-stack --trace-env-native-stack --trace-gc \
    --use-env-proxy --use-system-ca --entry-url --harmony* --no-* --allow-ffi --allow-fs-vfs \
    --allow-openssl-store --bench --enable-fips-indicator-events --experimental-addon-modules \
    --experimental-bench --experimental-import-text --experimental-inspector-network-resource \
    --experimental-storage-inspection --experimental-stream-iter --experimental-vfs \
    --experimental-web-worker --experimental-worker-inspection --webstorage --permission-audit \
    --report-exclude-env --report-on-process-timeout --test-coverage-include-all \
    --test-randomize --addons --async-context-frame --debug --debug-arraybuffer-allocations \
    --debug-brk --deprecation --experimental-abortcontroller --experimental-detect-module \
    --experimental-dtls --experimental-fetch --experimental-ffi \
    --experimental-global-customevent --experimental-global-navigator \
    --experimental-global-webcrypto --experimental-json-modules --experimental-modules \
    --experimental-quic --experimental-report --experimental-shadow-realm \
    --experimental-test-snapshots --experimental-top-level-await \
    --experimental-wasi-unstable-preview1 --experimental-worker --expose-internals \
    --extra-info-on-fatal-exception --force-async-hooks-checks --global-search-paths \
    --harmony-shadow-realm --http-parser --inspect-brk-node --napi-modules \
    --network-family-autoselection --node-snapshot --perf-basic-prof \
    --perf-basic-prof-only-functions --perf-prof --perf-prof-unwinding-info --require-module \
    --strip-types --test-udp-no-try-send --tls-max-v1 --tls-min-v1 --trace-events-enabled \
    --verify-base-objects --warnings --worker-snapshot";

// bun 1.4.5, `bun run --help` and `bunx --help`.
pub(super) const BUN_VALUES: &str = "\
    --elide-lines -F --filter --shell --watch-kill-signal -r --preload --require --import \
    --cpu-prof-name --cpu-prof-dir --cpu-prof-interval --heap-prof-name --heap-prof-dir \
    --heap-prof-interval --install --port --conditions --fetch-preconnect --max-http-header-size \
    --dns-result-order --redirect-warnings --disable-warning --title --unhandled-rejections \
    --console-depth --user-agent --cron-title --cron-period --main-fields --extension-order \
    --tsconfig-override -d --define --drop --feature -l --loader --jsx-factory --jsx-fragment \
    --jsx-import-source --jsx-runtime --env-file -c --config --registry --ca --cafile \
    --minimum-release-age";
pub(super) const BUN_FLAGS: &str = "\
    --silent -b --bun --no-orphans --workspaces --parallel --sequential --no-exit-on-error \
    --watch --hot --no-clear-screen --check --smol --interactive --cpu-prof --cpu-prof-md \
    --heap-prof --heap-prof-md --if-present --no-install -i --prefer-offline --prefer-latest \
    --experimental-http2-fetch --experimental-http3-fetch --insecure-http-parser \
    --experimental-stream-iter --expose-gc --no-deprecation --throw-deprecation --no-warnings \
    --trace-warnings --trace-deprecation --pending-deprecation --zero-fill-buffers \
    --use-system-ca --use-openssl-ca --use-bundled-ca --tls-min-v1.0 --tls-min-v1.1 \
    --tls-min-v1.2 --tls-min-v1.3 --tls-max-v1.2 --tls-max-v1.3 --redis-preconnect \
    --sql-preconnect --no-addons --no-ffi-cc --preserve-symlinks --preserve-symlinks-main \
    --no-macros --jsx-side-effects --ignore-dce-annotations --no-env-file --inspect \
    --inspect-brk --inspect-wait --ignore-scripts --trust --verbose --no-*";

// deno 2.9.6, `deno run --help=full`. Values in brackets are given with `=` only, except for `--lock`.
pub(super) const DENO_VALUES: &str = "\
    --ext --import-map --node-modules-linker -c --config --cert --min-dep-age \
    --inspect-publish-uid --location --seed --preload --require --conditions --lock -L \
    --log-level --host --port";
pub(super) const DENO_FLAGS: &str = "\
    --check --watch --hmr --watch-exclude --no-clear-screen --env-file --no-code-cache \
    --coverage --use-env-proxy --no-check --no-remote --no-npm --node-modules-dir --vendor \
    --no-config -r --reload --no-lock --frozen-lockfile --unsafely-ignore-certificate-errors \
    --inspect --inspect-brk --inspect-wait --cached-only --v8-flags --allow-scripts -A \
    --allow-all -P --permission-set --no-prompt -R --allow-read -W --allow-write -I \
    --allow-import -N --allow-net -E --allow-env -S --allow-sys --allow-run --allow-ffi \
    --deny-read --deny-write --deny-net --deny-env --deny-sys --deny-run --deny-ffi \
    --deny-import --ignore-env --ignore-read -q --quiet --unstable --unstable-* --no-* --allow-* \
    --deny-* --parallel --open -T --tunnel";

// Docker CLI 28.2.2, `docker --help`, and Podman 5.4, `podman(1)`: options before the command.
pub(super) const ENGINE_VALUES: &str = "\
    --config -c --context -H --host -l --log-level --tlscacert --tlscert --tlskey \
    --cdi-spec-dir --cgroup-manager --conmon --connection --events-backend --hooks-dir --identity \
    --imagestore --module --namespace --network-backend --network-cmd-path --network-config-dir \
    --out --root --runroot --runtime --runtime-flag --ssh --storage-driver --storage-opt --tmpdir \
    --tls-ca --tls-cert --tls-key --url --volumepath --address --cni-path --data-root --snapshotter";
pub(super) const ENGINE_FLAGS: &str =
    "-D --debug --tls --tlsverify --noout -r --remote --syslog --transient-store";

// CPython 3.11.7, `python3 --help`. Short options may share a dash.
pub(super) const PYTHON_VALUES: &str = "-W -X --check-hash-based-pycs";
pub(super) const PYTHON_FLAGS: &str = "-b -B -d -E -i -I -O -P -q -R -s -S -t -u -v -x";

// pipx 1.18.4, `pipx run --help`.
pub(super) const PIPX_VALUES: &str = "\
    --python --python-args --with --fetch-python -i --index-url --pip-args --cooldown --backend";
pub(super) const PIPX_FLAGS: &str = "\
    -q --quiet -v --verbose --skip-maintenance --global --no-cache --refresh --no-path-check --path \
    --pypackages --fetch-missing-python --system-site-packages -e --editable";

// yarn 4.18.1, `yarn dlx --help`, `yarn run --help`; yarn 1.22 has `--cwd` and the others.
pub(super) const YARN_VALUES: &str = "--require --cache-folder --modules-folder --registry --mutex";
pub(super) const YARN_FLAGS: &str = "\
    -q --quiet --inspect --inspect-brk -T --top-level -B --binaries-only -s --silent --offline \
    --non-interactive --json --verbose --no-*";

// .NET SDK 10.0.100: `dotnet tool exec`, `dotnet run` and the host, as documented at learn.microsoft.com.
pub(super) const DOTNET_TOOL_VALUES: &str = "\
    -a --arch --add-source --configfile --framework --source --version -v --verbosity";
pub(super) const DOTNET_TOOL_FLAGS: &str = "\
    --allow-roll-forward --disable-parallel --ignore-failed-sources --interactive --no-http-cache \
    --prerelease -y --yes";
pub(super) const DOTNET_RUN_VALUES: &str = "\
    -a --arch --artifacts-path -c --configuration -e --environment -f --framework -lp \
    --launch-profile --os -p --property -r --runtime --tl -v --verbosity --source";
pub(super) const DOTNET_RUN_FLAGS: &str = "\
    --disable-build-servers --force --interactive --no-build --no-cache --no-dependencies \
    --no-launch-profile --no-restore --no-self-contained --sc --self-contained";
pub(super) const DOTNET_HOST_VALUES: &str = "\
    --additionalprobingpath --additional-deps --depsfile --fx-version --roll-forward \
    --roll-forward-on-no-candidate-fx --runtimeconfig";

// OpenJDK 17.0.15, `java --help` and `java -X`. Its other options carry their value in the same word.
pub(super) const JAVA_VALUES: &str = "\
    -cp -classpath --class-path -p --module-path --upgrade-module-path --add-modules \
    --enable-native-access --add-reads --add-exports --add-opens --limit-modules --patch-module \
    --source --describe-module -d --finalization";
pub(super) const JAVA_FLAGS: &str = "\
    -zero -server -client -dcevm --dry-run --validate-modules -D* -X* -verbose* -showversion \
    --show-version --show-module-resolution -ea* -enableassertions* -da* -disableassertions* -esa \
    -enablesystemassertions -dsa -disablesystemassertions -agentlib* -agentpath* -javaagent* \
    -splash* -disable-@files --enable-preview --illegal-access*";

// jbang 0.140, `docs/modules/cli/pages/jbang-run.adoc`.
pub(super) const JBANG_VALUES: &str = "\
    -R --runtime-option --java-options --javaagent -s --sources --files -T --source-type --catalog \
    -j --java -m --main -C --compile-option --manifest -D --properties --deps --repos --cp \
    --class-path -N --native-option --build-dir --config";
pub(super) const JBANG_FLAGS: &str = "\
    --jfr -d --debug --enableassertions --ea --enablesystemassertions --esa --cds --no-* -i \
    --interactive --jsh --module --integrations --ignore-transitive-repositories --itr -n --native \
    --enable-preview --insecure --verbose --quiet -o --offline --fresh --preview -x --stacktrace";

// GNU make 4.3, `make --help`.
pub(super) const MAKE_VALUES: &str = "\
    -E --eval -f --file --makefile -I --include-dir -o --old-file --assume-old -W --what-if \
    --new-file --assume-new";
pub(super) const MAKE_FLAGS: &str = "\
    -b -m -B --always-make -d --debug -e --environment-overrides -i --ignore-errors --jobs -k \
    --keep-going --load-average --max-load -L --check-symlink-times -n --just-print --dry-run --recon \
    -O --output-sync -p --print-data-base -q --question -r --no-builtin-rules -R \
    --no-builtin-variables -s --silent --quiet --no-silent -S --no-keep-going --stop -t --touch \
    --trace -w --print-directory --no-print-directory --warn-undefined-variables";

// Go, `go build` and `go run`: not compared.
pub(super) const GO_VALUES: &str = "\
    -C -exec -p -asmflags -buildmode -compiler -covermode -coverpkg -gccgoflags -gcflags -installsuffix \
    -ldflags -mod -modfile -overlay -pgo -pkgdir -tags -toolexec";
pub(super) const GO_FLAGS: &str = "\
    -a -n -race -msan -asan -cover -v -work -x -buildvcs -linkshared -modcacherw -trimpath -json";

// GNU coreutils 9.1, `env --help`. `-S` is read by the grammar itself.
pub(super) const ENV_VALUES: &str = "-u --unset -C --chdir";
pub(super) const ENV_FLAGS: &str = "\
    - -i --ignore-environment -0 --null --block-signal --default-signal --ignore-signal \
    --list-signal-handling -v --debug";

// tsx 4.23.15, `tsx --help`; it takes the options of node as well.
pub(super) const TSX_VALUES: &str = "--tsconfig --ignore --include --exclude";
pub(super) const TSX_FLAGS: &str = "--clear-screen";

// ts-node 10.9.2, `dist/bin.js`.
pub(super) const TS_NODE_VALUES: &str = "\
    -r --require -P --project -C --compiler -I --ignore -D --ignoreDiagnostics \
    --ignore-diagnostics -O --compilerOptions --compiler-options --cwd --dir --transpiler \
    --scopeDir --scope-dir --experimentalSpecifierResolution --experimental-specifier-resolution";
pub(super) const TS_NODE_FLAGS: &str = "\
    -i --interactive -T --transpileOnly --transpile-only -H --compilerHost --compiler-host \
    --files --pretty --skipProject --skip-project --skipIgnore --skip-ignore --preferTsExts \
    --prefer-ts-exts --logError --log-error --emit --esm --swc --typeCheck --type-check \
    --cwdMode --cwd-mode -s --scriptMode --script-mode --scope --noExperimentalReplAwait --no-*";

// fastmcp, and the `mcp` of the Python SDK: not compared.
pub(super) const FASTMCP_VALUES: &str = "\
    -t --transport --host -p --port --path -l --log-level --python --with --with-requirements \
    -e --with-editable --project --ui-port --server-port";
pub(super) const FASTMCP_FLAGS: &str =
    "--no-banner --skip-source --skip-env --reload --no-reload --stateless";

// mcp-remote 0.15.1, the arguments that its `dist` reads.
pub(super) const MCP_REMOTE_VALUES: &str = "\
    --header --header-file --ignore-tool --auth-success-url --auth-timeout --callback-path \
    --client-metadata-url --host --protocol --resource --static-oauth-client-info \
    --static-oauth-client-metadata --token-endpoint --transport --ping-interval";
pub(super) const MCP_REMOTE_FLAGS: &str = "\
    --allow-http --debug --enable-proxy --ipv4 --keep-alive --silent --client-credentials \
    --device-code --use-id-token --disable-cookies --disable-resource-parameter";

// mcp-proxy 0.13.0 (Python), `mcp-proxy --help`. Those in `PAIRS` take two words. `--allow-origin` and
// `--verify-ssl` take any number of words and are therefore left out.
pub(super) const MCP_PROXY_VALUES: &str = "\
    --transport --client-id --client-secret --token-url --username --password --cwd --log-level \
    --named-server-config --port --host --sse-port --sse-host --expose-header";
pub(super) const MCP_PROXY_FLAGS: &str = "\
    --digest --no-verify-ssl --pass-environment --no-pass-environment --debug --no-debug \
    --stateless --no-stateless";
pub(super) const MCP_PROXY_PAIRS: &str = "-H --headers -e --env --named-server";

// supergateway: not compared. `--cors` takes any number of words.
pub(super) const SUPERGATEWAY_VALUES: &str = "\
    --stdio --outputTransport --port --baseUrl --ssePath --messagePath --streamableHttpPath \
    --logLevel --healthEndpoint --sessionTimeout --header --oauth2Bearer --protocolVersion";
pub(super) const SUPERGATEWAY_FLAGS: &str = "--stateful";

// @smithery/cli 1 to 2, `src/index.ts`, the command `run`.
pub(super) const SMITHERY_VALUES: &str = "--config --key --profile --prompt -c --client";
pub(super) const SMITHERY_FLAGS: &str = "--playground --no-open --verbose --debug";

// ruby, PHP and perl: not compared.
pub(super) const RUBY_VALUES: &str =
    "-C -E -I -r --encoding --external-encoding --internal-encoding";
pub(super) const RUBY_FLAGS: &str = "-a -c -d -l -n -s -S -U -w --debug --jit --yjit --verbose";
pub(super) const PHP_VALUES: &str = "-c -d -z --php-ini --define --zend-extension";
pub(super) const PHP_FLAGS: &str = "-C -H -n -q --no-php-ini --no-header";
pub(super) const PERL_FLAGS: &str = "-a -c -n -p -s -S -t -T -u -U -w -W -X -I* -M* -m*";

// The `run` of Poetry, PDM, Pipenv and conda: not compared.
pub(super) const PROJECT_RUN_VALUES: &str = "-n --name -p --prefix --python";
pub(super) const PROJECT_RUN_FLAGS: &str = "\
    -q --quiet -v -vv -vvv --verbose --no-interaction --no-plugins --no-cache --no-ansi --ansi \
    --no-capture-output --live-stream";
