/**
 * Deletions of VMs whose storage pool an administrator has stopped, undefined, renamed or moved meanwhile: nothing with
 * a private key in it stays without that somebody is told. libvirt-host.ts says what is real here; the pools and files
 * are.
 */
import {mkdir, chown, rm} from 'node:fs/promises';
import {randomBytes} from 'node:crypto';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {PodVms, PodVmSpec} from '../../src/sandbox/ports.ts';
import {specOf} from '../contract/pod-vms.ts';
import {
	domainsNaming,
	intercept,
	never,
	podVmsOn,
	startLibvirtHost,
	type InterceptedCalls,
	type LibvirtHost,
	type TestPool,
} from './libvirt-host.ts';

let host: LibvirtHost;
test.before('a libvirt host', async () => {
	host = await startLibvirtHost();
});
test.after.always('the libvirt host ends', async () => host[Symbol.asyncDispose]());

interface Vm {
	readonly calls: InterceptedCalls;
	readonly vms: PodVms;
	readonly spec: PodVmSpec;
	readonly pool: TestPool;
	readonly files: readonly string[];
	readonly leftovers: () => Promise<readonly string[]>;
}

async function startedVm(): Promise<Vm> {
	const [pool, calls, cluster, spec] = [
		await host.pool(),
		intercept(host.calls),
		randomBytes(6).toString('hex'),
		specOf(),
	];
	const vms = podVmsOn(calls, pool, {cluster, node: 'node'});
	await vms.start(spec, never);
	calls.made.length = 0;
	return {
		calls,
		vms,
		spec,
		pool,
		files: [`${spec.instanceName}-cidata.iso`, `${spec.instanceName}-root.qcow2`],
		leftovers: async () => [...(await domainsNaming(host.calls, cluster)), ...(await pool.files())],
	};
}

const poolXml = (name: string, directory: string): string =>
	`<pool type='dir'><name>${name}</name><target><path>${directory}</path></target></pool>`;

/** The test's pools are transient: one that is stopped is not defined any more. */
async function undefinePool({name}: TestPool): Promise<void> {
	const {pool} = await host.calls.call(procedures.storagePoolLookupByName, {name}, never);
	await host.calls.call(procedures.storagePoolDestroy, {pool}, never);
}

async function startPool(name: string, directory: string): Promise<void> {
	await host.calls.call(procedures.storagePoolCreateXml, {xml: poolXml(name, directory), flags: 0}, never);
}

/** All but the files is gone, and the failure says so. */
async function failsToDelete(
	t: ExecutionContext,
	{vms, spec, files, leftovers}: Vm,
	fault: RegExp,
): Promise<AdaptorError> {
	const error = await t.throwsAsync<AdaptorError>(vms.delete(spec.sandboxId, never), {instanceOf: AdaptorError});
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, fault);
	for (const file of files) {
		t.true(error.message.includes(file), error.message);
	}

	t.regex(error.message, new RegExp(`virsh undefine ${spec.instanceName}`));
	t.like(await vms.list(never), [{sandboxId: spec.sandboxId, running: false}]);
	t.deepEqual(await leftovers(), [spec.instanceName, ...files]);
	return error;
}

async function deletes(t: ExecutionContext, {vms, spec, leftovers}: Vm): Promise<void> {
	await vms.delete(spec.sandboxId, never);
	t.deepEqual(await leftovers(), []);
	t.deepEqual(await vms.list(never), []);
}

test('if a pool is not defined, the VM is stopped, and leftovers are reported until the pool is back', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	const error = await failsToDelete(
		t,
		vm,
		/the storage pool is not defined on the KVM host.* Define and start the pool/,
	);
	t.like(error.where, {pool: vm.pool.name, directory: vm.pool.directory, instanceName: vm.spec.instanceName});
	await failsToDelete(t, vm, /is not defined/);
	await startPool(vm.pool.name, vm.pool.directory);
	await deletes(t, vm);
});

test('if a pool is lost, the deletion succeeds after files and domain are removed by hand', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	await failsToDelete(t, vm, /is not defined/);
	await Promise.all(vm.files.map(async file => rm(`${vm.pool.directory}/${file}`)));
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: vm.spec.instanceName}, never);
	await host.calls.call(procedures.domainUndefineFlags, {dom, flags: 0}, never);
	await deletes(t, vm);
});

test('files that were removed by hand are no obstacle when the pool is back', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	await failsToDelete(t, vm, /is not defined/);
	await Promise.all(vm.files.map(async file => rm(`${vm.pool.directory}/${file}`)));
	await startPool(vm.pool.name, vm.pool.directory);
	await deletes(t, vm);
});

test('a pool that has another name now: the volumes are deleted through it', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	await startPool(`${vm.pool.name}-renamed`, vm.pool.directory);
	await deletes(t, vm);
});

test('a half-deleted VM whose pool was renamed is deleted completely, too', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	await Promise.all(vm.files.map(async file => rm(`${vm.pool.directory}/${file}`)));
	await startPool(`${vm.pool.name}-renamed`, vm.pool.directory);
	await deletes(t, vm);
});

test('an inactive pool is reported at once, and the deletion continues when the pool is started', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	const {pool} = await host.calls.call(
		procedures.storagePoolDefineXml,
		{xml: poolXml(vm.pool.name, vm.pool.directory), flags: 0},
		never,
	);
	await failsToDelete(t, vm, /the storage pool is not active on the KVM host.* Run "virsh pool-start pool-/);
	t.is(vm.calls.made.filter(name => name === 'storageVolDelete').length, 2, 'not taken for a volume that is busy');
	await host.calls.call(procedures.storagePoolCreate, {pool, flags: 0}, never);
	await deletes(t, vm);
});

test('if a pool now has another directory, the volumes are not considered gone', async t => {
	const vm = await startedVm();
	await undefinePool(vm.pool);
	const other = `${host.libvirtd.directory}/${randomBytes(6).toString('hex')}`;
	await mkdir(other);
	await chown(other, host.libvirtd.uid, host.libvirtd.uid);
	await startPool(vm.pool.name, other);
	await failsToDelete(t, vm, /the storage pool now has a different directory on the KVM host/);
	await startPool(`${vm.pool.name}-former`, vm.pool.directory);
	await deletes(t, vm);
});

test('the volumes of a VM of an earlier version, without pool directory, are not considered gone', async t => {
	const vm = await startedVm();
	const {dom} = await host.calls.call(procedures.domainLookupByName, {name: vm.spec.instanceName}, never);
	const {xml} = await host.calls.call(procedures.domainGetXmlDesc, {dom, flags: 0}, never);
	await host.calls.call(procedures.domainDestroyFlags, {dom, flags: 0}, never);
	const earlier = xml.replace(/ directory=(["'])[^"']*\1/, '');
	t.not(earlier, xml);
	await host.calls.call(procedures.domainDefineXmlFlags, {xml: earlier, flags: 0}, never);
	await undefinePool(vm.pool);
	await failsToDelete(t, vm, /the storage pool is not defined on the KVM host/);
	await startPool(vm.pool.name, vm.pool.directory);
	await deletes(t, vm);
});
