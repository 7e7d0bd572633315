/** The way that images really go: through sshd to the host's libvirtd. */
import {randomBytes} from 'node:crypto';
import {readdir, readFile, writeFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {pushImage} from '../../src/image/push.ts';
import {openPipe} from '../../src/libvirt/transport/open-pipe.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {silentLogger} from '../../src/core/log.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';
import {startSshd} from '../support/sshd.ts';
import {run} from './command.ts';
import {never, withoutOrigins} from './storage.ts';

test('an image is pushed over ssh byte by byte, and an interrupted push leaves nothing', async t => {
	await using libvirtd = await startTestLibvirtd();
	await using sshd = await startSshd({hostKeys: ['ed25519']});
	const knownHosts = `${sshd.directory}/known_hosts`;
	await writeFile(knownHosts, await sshd.knownHostsLine('ed25519'));
	const directory = `${libvirtd.directory}/images`;
	const env = {
		LIBVIRT_URI: `qemu+ssh://root@${sshd.host}:${sshd.port}/session?socket=${libvirtd.socketPath}&keyfile=${sshd.userKey}&known_hosts=${knownHosts}`,
		LIBVIRT_POOL: 'images',
		LIBVIRT_DIR_NAME: directory,
	};
	// More than goes over the connection that calls share, with a hole and half a KiB at its end.
	const content = Buffer.concat([
		Buffer.from('zIPL'),
		randomBytes(8_999_996),
		Buffer.alloc(3_000_000),
		randomBytes(6_000_384),
	]);
	const image = `${libvirtd.directory}/image.raw`;
	await writeFile(image, content);

	const first = await run(t, env, 'push', '-create-pool', image);
	t.is(first.code, 0, first.err);
	t.regex(first.out, /podvm-base\.qcow2 now points to it/v);
	const files = withoutOrigins(await readdir(directory));
	t.is(files.length, 2);
	t.true((await readFile(`${directory}/${files[0] ?? ''}`)).equals(content));
	await sshd.idle();

	// From here on, something happens to it when some of it is written.
	const uri = parseLibvirtUri(env.LIBVIRT_URI);
	await using session = new LibvirtSession({
		uri: uri.remoteUri,
		openPipe: openPipe(uri, {log: silentLogger, home: '/nonexistent', user: 'root', agentSocket: undefined}),
	});
	const pushUntil = async (happens: () => void | Promise<void>, signal: AbortSignal): Promise<unknown> =>
		pushImage(
			{
				session,
				pool: 'images',
				name: 'podvm-base.qcow2',
				givesName: true,
				log: silentLogger,
				onProgress: () => undefined,
				source: {
					name: 'made up',
					open: async () => ({
						name: 'made up',
						size: BigInt(content.length),
						[Symbol.asyncDispose]: async () => undefined,
						async *chunks() {
							yield content.subarray(0, 8_000_000);
							t.is(withoutOrigins(await readdir(directory)).length, 3);
							await happens();
							yield content.subarray(8_000_000);
						},
					}),
				},
			},
			signal,
		);

	const stopping = new AbortController();
	const stopped = new Error('stopped');
	await t.throwsAsync(
		pushUntil(() => stopping.abort(stopped), stopping.signal),
		{is: stopped},
	);
	t.deepEqual(withoutOrigins(await readdir(directory)), files);

	// The host's side of every connection goes. A new one removes what is there.
	const broken = pushUntil(async () => {
		for (const pid of await sshd.sessionPids()) {
			try {
				process.kill(pid, 'SIGKILL');
			} catch (error) {
				// With one that was killed, another may have ended by itself.
				t.like(error, {code: 'ESRCH'});
			}
		}
	}, never);
	await t.throwsAsync(broken, {instanceOf: AdaptorError, message: /libvirt/v});
	t.deepEqual(withoutOrigins(await readdir(directory)), files);
});
