// A start that fails because of the pool or the network says which setting names it and what to run. Pools and files
// are real; libvirt's test driver starts domains on a network that is not active, so that answer is a recorded one.
import {execFile} from 'node:child_process';
import {randomBytes} from 'node:crypto';
import {chown, copyFile, mkdir} from 'node:fs/promises';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {LibvirtError} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {PodVms} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {
	baseVolume,
	intercept,
	never,
	podVmsOn,
	startLibvirtHost,
	type LibvirtHost,
	type TestPool,
} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

async function failure(t: ExecutionContext, vms: PodVms): Promise<AdaptorError> {
	return t.throwsAsync<AdaptorError>(vms.start(specOf(), never), {instanceOf: AdaptorError});
}

const poolXml = (name: string, directory: string): string =>
	`<pool type='dir'><name>${name}</name><target><path>${directory}</path></target></pool>`;

async function stop({name}: Pick<TestPool, 'name'>): Promise<void> {
	const {pool} = await host.calls.call(procedures.storagePoolLookupByName, {name}, never);
	await host.calls.call(procedures.storagePoolDestroy, {pool}, never);
}

test('a pool that is not active is named with its setting and the command that starts it', async t => {
	const pool = await host.pool();
	await stop(pool);
	await host.calls.call(procedures.storagePoolDefineXml, {xml: poolXml(pool.name, pool.directory), flags: 0}, never);
	const error = await failure(t, podVmsOn(host.calls, pool));
	t.is(error.code, 'failed-precondition');
	t.is(error.what, `Pool ${pool.name} (LIBVIRT_POOL) is not active`);
	t.is(error.remedy, `Run "virsh pool-start ${pool.name}" on the KVM host.`);
	t.true(error.cause instanceof LibvirtError);
});

test('a pool that does not exist is named with its setting', async t => {
	const pool = await host.pool();
	await stop(pool);
	const error = await failure(t, podVmsOn(host.calls, pool));
	t.is(error.code, 'not-found');
	t.is(error.what, `Pool ${pool.name} (LIBVIRT_POOL) does not exist on the KVM host`);
	t.regex(error.remedy ?? '', /^Set LIBVIRT_POOL to a pool that "virsh pool-list --all" shows/);
});

test('a full pool is told with its space, whatever words qemu-img has for it', async t => {
	const source = await host.pool();
	const [name, directory] = [`full-${randomBytes(4).toString('hex')}`, `${host.libvirtd.directory}/full`];
	const run = promisify(execFile);
	await mkdir(directory);
	await run('mount', ['-t', 'tmpfs', '-o', `size=400k,uid=${host.libvirtd.uid}`, 'tmpfs', directory]);
	t.teardown(async () => run('umount', ['-l', directory]));
	await copyFile(`${source.directory}/${baseVolume}`, `${directory}/${baseVolume}`);
	await chown(`${directory}/${baseVolume}`, host.libvirtd.uid, host.libvirtd.uid);
	await host.calls.call(procedures.storagePoolCreateXml, {xml: poolXml(name, directory), flags: 0}, never);
	const error = await failure(t, podVmsOn(host.calls, {...source, name}));
	t.is(error.code, 'resource-exhausted');
	t.regex(error.what, new RegExp(String.raw`^Pool ${name} \(LIBVIRT_POOL\) is full \([\d.]+ KiB of 400 KiB free\)$`));
	t.regex(error.remedy ?? '', /^Run "cloud-api-adaptor image prune", add space, or lower LIBVIRT_ROOT_DISK_SIZE\.$/);
	await stop({name});
});

test('a network that is not active is named with its setting and the command that starts it', async t => {
	const [pool, calls] = [await host.pool(), intercept(host.calls)];
	calls.answer = procedure => (procedure === procedures.networkIsActive.name ? {active: 0} : undefined);
	calls.before = async procedure => {
		if (procedure === procedures.domainCreateWithFlags.name) {
			throw new LibvirtError(
				{...recorded, code: 55, domain: 19, message: "network 'default' is not active"},
				procedure,
			);
		}
	};
	const error = await failure(t, podVmsOn(calls, pool));
	t.is(error.code, 'failed-precondition');
	t.is(error.what, 'Network default (LIBVIRT_NET) is not active');
	t.is(error.remedy, 'Run "virsh net-start default" on the KVM host.');
});

test('a network that does not exist is named with its setting', async t => {
	const error = await failure(t, podVmsOn(host.calls, await host.pool(), {network: 'none'}));
	t.is(error.code, 'not-found');
	t.is(error.what, 'Network none (LIBVIRT_NET) does not exist on the KVM host');
	t.regex(error.remedy ?? '', /^Set LIBVIRT_NET to a network that "virsh net-list --all" shows/);
});

test('an image that does not exist is told with the words that upstream has for it', async t => {
	const error = await failure(t, podVmsOn(host.calls, await host.pool(), {volumeName: 'none.qcow2'}));
	t.is(error.what, "Error in creating volume: Can't retrieve volume none.qcow2: the pool has no such volume");
});

test('a failure that neither pool nor network explains stays as libvirt tells it', async t => {
	const [pool, calls] = [await host.pool(), intercept(host.calls)];
	const told = new LibvirtError({...recorded, code: 1, domain: 10, message: 'out of luck'}, 'domainCreateWithFlags');
	calls.before = async procedure => {
		if (procedure === procedures.domainCreateWithFlags.name) {
			throw told;
		}
	};
	t.is(await failure(t, podVmsOn(calls, pool)), told);
});

const recorded = {level: 2, dom: null, str1: null, str2: null, str3: null, int1: -1, int2: -1, net: null};
