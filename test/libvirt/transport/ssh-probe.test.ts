import {chmod, copyFile, stat, writeFile} from 'node:fs/promises';
import test, {type ExecutionContext} from 'ava';
import {HostKeyError} from '../../../src/libvirt/transport/host-keys.ts';
import {SshProbe} from '../../../src/libvirt/transport/ssh-probe.ts';
import {parseLibvirtUri} from '../../../src/libvirt/uri.ts';
import {startSshd, type Sshd, type SshdOptions} from '../../support/sshd.ts';

const signal = AbortSignal.timeout(300_000);

async function sshdOf(t: ExecutionContext, options: SshdOptions = {}): Promise<Sshd> {
	const sshd = await startSshd({hostKeys: ['ed25519'], ...options});
	t.teardown(async () => sshd[Symbol.asyncDispose]());
	await writeFile(`${sshd.directory}/known_hosts`, await sshd.knownHostsLine('ed25519'));
	return sshd;
}

function probeOf(
	t: ExecutionContext,
	{port, userKey, directory}: Pick<Sshd, 'port' | 'userKey' | 'directory'>,
	parameters = `known_hosts=${directory}/known_hosts`,
	uid?: number,
): SshProbe {
	const uri = parseLibvirtUri(`qemu+ssh://root@127.0.0.1:${port}/system?keyfile=${userKey}&${parameters}`);
	if (uri.transport !== 'ssh') {
		throw new TypeError('It names ssh');
	}

	const probe = new SshProbe(uri, {home: '/nonexistent', user: 'someone', uid, agentSocket: undefined});
	t.teardown(() => probe[Symbol.dispose]());
	return probe;
}

test('a successful login returns the verified host and its clock, and leaves no session', async t => {
	const sshd = await sshdOf(t);
	const probe = probeOf(t, sshd);
	const login = await probe.login(signal);
	t.like(login, {user: 'root', host: '127.0.0.1', port: sshd.port, exposedKeys: []});
	t.true(login.durationMs > 0);
	t.false('unproven' in login);
	t.is(await probe.clockSkew(signal), 0);
	probe[Symbol.dispose]();
	probe[Symbol.dispose]();
	await sshd.idle();
});

test('a host key that is not verified, and a private key that others can read, are told', async t => {
	const sshd = await sshdOf(t);
	const exposed = `${sshd.directory}/exposed`;
	await copyFile(sshd.userKey, exposed);
	await chmod(exposed, 0o644);
	const login = await probeOf(t, {...sshd, userKey: exposed}, 'no_verify=1').login(signal);
	t.regex(login.unproven ?? '', /not verified.*SHA256:/);
	t.deepEqual(login.exposedKeys, [exposed]);
});

test('a key that kubelet made readable for the group of the container does not count as exposed', async t => {
	const sshd = await sshdOf(t);
	const mounted = `${sshd.directory}/mounted`;
	await copyFile(sshd.userKey, mounted);
	const {uid: owner} = await stat(mounted);
	for (const [mode, uid, isExposed] of [
		[0o440, owner + 1, false],
		[0o440, owner, true],
		[0o460, owner + 1, true],
		[0o444, owner + 1, true],
	] as const) {
		await chmod(mounted, mode);
		const {exposedKeys} = await probeOf(t, {...sshd, userKey: mounted}, 'no_verify=1', uid).login(signal);
		t.deepEqual(exposedKeys, isExposed ? [mounted] : [], `${mode.toString(8)} of ${owner}, read by ${uid}`);
	}
});

test('if the account cannot run the command, the clock is unknown', async t => {
	for (const keyOptions of ['restrict,port-forwarding,command="echo hello"', 'command="exit 1"']) {
		const probe = probeOf(t, await sshdOf(t, {keyOptions}));
		await probe.login(signal);
		t.is(await probe.clockSkew(signal), undefined);
	}

	const without = probeOf(t, await sshdOf(t, {config: ['MaxSessions 0']}));
	await without.login(signal);
	t.is(await without.clockSkew(signal), undefined);
});

test('a wrong host key and a refused user key are different errors, each with a remedy', async t => {
	const [sshd, other] = [await sshdOf(t), await sshdOf(t)];
	await writeFile(
		`${sshd.directory}/wrong_hosts`,
		(await other.knownHostsLine('ed25519')).replace(String(other.port), String(sshd.port)),
	);
	await t.throwsAsync(probeOf(t, sshd, `known_hosts=${sshd.directory}/wrong_hosts`).login(signal), {
		instanceOf: HostKeyError,
		message: /has changed/,
	});
	const error = await t.throwsAsync(probeOf(t, {...sshd, userKey: other.userKey}).login(signal), {
		message: /refused the ssh login of user root.*authorized_keys/,
	});
	t.like(error, {code: 'unauthenticated'});
});
