/** Builds peer.go against Debian's packages: no module proxy, no download. */
import {execFile} from 'node:child_process';
import {createHash} from 'node:crypto';
import {existsSync, mkdirSync, readFileSync, renameSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';

const go = '/usr/lib/go/bin/go';
const gopath = '/usr/share/gocode';
const needed = [go, `${gopath}/src/github.com/containerd/ttrpc/server.go`];
const source = fileURLToPath(new URL('peer.go', import.meta.url));
const cache = fileURLToPath(new URL('../../.cache/', import.meta.url));

/** The path of the executable; built when its source has changed. */
export async function referencePeer(): Promise<string> {
	const missing = needed.filter(path => !existsSync(path));
	if (missing.length > 0) {
		throw new Error(
			`Missing: ${missing.join(', ')}. The reference implementation of ttrpc is needed: apt-get install golang-go golang-github-containerd-ttrpc-dev`,
		);
	}

	const hash = createHash('sha256').update(readFileSync(source)).digest('hex').slice(0, 16);
	const peer = `${cache}interop-ttrpc-peer-${hash}`;
	if (!existsSync(peer)) {
		mkdirSync(cache, {recursive: true});
		const unfinished = `${peer}.${process.pid}`;
		await promisify(execFile)(go, ['build', '-o', unfinished, source], {
			env: {
				...process.env,
				GO111MODULE: 'off',
				GOPATH: gopath,
				GOCACHE: `${cache}go-build`,
				GOFLAGS: '',
				GOROOT: '',
				GOTOOLCHAIN: 'local',
				CGO_ENABLED: '0',
			},
		});
		renameSync(unfinished, peer);
	}

	return peer;
}
