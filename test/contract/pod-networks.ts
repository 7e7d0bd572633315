/** The contract of `PodNetworks`. Each implementation calls this suite once from its own test file. */
import type {ExecutionContext, TestFn} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import type {PodNetwork, PodNetworks} from '../../src/sandbox/ports.ts';

export interface PodNetworksHarness extends AsyncDisposable {
	readonly networks: PodNetworks;
	/** The path of the network namespace of a new pod, a different one for each `n` from 2 to 250. */
	readonly addPod: (n: number) => Promise<string>;
	/** Removes the namespace of the pod, as the container runtime may do at any time. */
	readonly removePod: (n: number) => Promise<void>;
	/** Another path to the namespace of the pod. */
	readonly aliasOf: (n: number) => Promise<string>;
	/** Replaces the namespace at the path of the pod by another one. */
	readonly replacePod: (n: number) => Promise<void>;
	/** Replaces the namespace at the path of the pod by a plain file, as if its mount were not propagated. */
	readonly unmountPod: (n: number) => Promise<void>;
	/** Makes the directory of all namespaces invisible. */
	readonly hidePods: () => Promise<void>;
	/** Whether a VNI is reserved, and the remote address of its tunnel. */
	readonly tunnel: (network: PodNetwork) => Promise<'none' | 'reserved' | {readonly remote: string}>;
}

export function podNetworksContract(test: TestFn, name: string, makeHarness: () => Promise<PodNetworksHarness>): void {
	const signal = (): AbortSignal => AbortSignal.timeout(100_000);
	const contract = (
		claim: string,
		check: (t: ExecutionContext, harness: PodNetworksHarness) => Promise<void>,
	): void => {
		test(`${name}: ${claim}`, async t => {
			await using harness = await makeHarness();
			await check(t, harness);
		});
	};

	contract('a reservation holds a VNI and points nowhere', async (t, {networks, addPod, tunnel}) => {
		const netnsPath = await addPod(2);
		const network = await networks.reserve('one', netnsPath, signal());
		t.is(network.netnsPath, netnsPath);
		t.true(network.vxlanId >= 555_000 && network.vxlanId < 2 ** 24);
		t.regex(network.podIp, /^\d+\.\d+\.\d+\.\d+\/\d+$/v);
		t.regex(network.workerNodeIp, /^\d+\.\d+\.\d+\.\d+\/\d+$/v);
		t.regex(network.podHwAddr, /^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$/v);
		t.is(await tunnel(network), 'reserved');
	});

	contract('what is reserved is plain data: a record of it serves as well', async (t, {networks, addPod, tunnel}) => {
		const network = JSON.parse(
			JSON.stringify(await networks.reserve('one', await addPod(2), signal())),
		) as PodNetwork;
		await networks.attach(network, '192.168.122.102', signal());
		t.deepEqual(await tunnel(network), {remote: '192.168.122.102'});
		await networks.release(network, signal());
		t.is(await tunnel(network), 'none');
	});

	contract('sixty at once have sixty VNIs', async (t, {networks, addPod}) => {
		const pods = await Promise.all(Array.from({length: 60}, async (_, n) => addPod(n + 2)));
		const reserved = await Promise.all(
			pods.map(async (netnsPath, n) => networks.reserve(`sandbox-${n}`, netnsPath, signal())),
		);
		t.is(new Set(reserved.map(({vxlanId}) => vxlanId)).size, 60);
	});

	contract(
		'attaching again changes nothing, and a second address replaces the first',
		async (t, {networks, addPod, tunnel}) => {
			const network = await networks.reserve('one', await addPod(2), signal());
			await networks.attach(network, '192.168.122.102', signal());
			await networks.attach(network, '192.168.122.102', signal());
			t.deepEqual(await tunnel(network), {remote: '192.168.122.102'});
			await networks.attach(network, '192.168.122.103', signal());
			t.deepEqual(await tunnel(network), {remote: '192.168.122.103'});
		},
	);

	contract(
		'releasing again, and releasing what was only reserved, succeeds and leaves the others alone',
		async (t, {networks, addPod, tunnel}) => {
			const one = await networks.reserve('one', await addPod(2), signal());
			const two = await networks.reserve('two', await addPod(3), signal());
			const three = await networks.reserve('three', await addPod(4), signal());
			await networks.attach(two, '192.168.122.102', signal());
			await networks.attach(three, '192.168.122.103', signal());
			await networks.release(one, signal());
			await networks.release(two, signal());
			await networks.release(one, signal());
			await networks.release(two, signal());
			t.deepEqual(await Promise.all([one, two, three].map(tunnel)), [
				'none',
				'none',
				{remote: '192.168.122.103'},
			]);
		},
	);

	contract('releasing succeeds when the namespace has gone', async (t, {networks, addPod, removePod, tunnel}) => {
		const network = await networks.reserve('one', await addPod(2), signal());
		await networks.attach(network, '192.168.122.102', signal());
		await removePod(2);
		await networks.release(network, signal());
		t.is(await tunnel(network), 'none');
	});

	contract('a pod can be reserved anew once it was released', async (t, {networks, addPod, tunnel}) => {
		const netnsPath = await addPod(2);
		const first = await networks.reserve('one', netnsPath, signal());
		await networks.release(first, signal());
		const second = await networks.reserve('two', netnsPath, signal());
		t.is(await tunnel(second), 'reserved');
	});

	contract(
		'a reservation is abandoned by its place alone, and the place is free again',
		async (t, {networks, addPod, tunnel}) => {
			const netnsPath = await addPod(2);
			const first = await networks.reserve('one', netnsPath, signal());
			await networks.releaseByNetns('one', netnsPath, signal());
			t.is(await tunnel(first), 'none');
			t.is(await tunnel(await networks.reserve('two', netnsPath, signal())), 'reserved');
		},
	);

	contract(
		'abandoning what another sandbox has, what leads to a VM, nothing, or what is gone changes nothing',
		async (t, {networks, addPod, removePod, tunnel}) => {
			const [reserved, attached, empty, gone] = await Promise.all([2, 3, 4, 5].map(addPod));
			const one = await networks.reserve('one', reserved ?? '', signal());
			const two = await networks.reserve('two', attached ?? '', signal());
			await networks.attach(two, '192.168.122.102', signal());
			await removePod(5);
			await networks.releaseByNetns('another', reserved ?? '', signal());
			await networks.releaseByNetns('another', attached ?? '', signal());
			await networks.releaseByNetns('three', empty ?? '', signal());
			await networks.releaseByNetns('four', gone ?? '', signal());
			t.deepEqual(await Promise.all([one, two].map(tunnel)), ['reserved', {remote: '192.168.122.102'}]);
		},
	);

	contract(
		'two paths to one namespace are one: a second sandbox is refused, and the first one is named',
		async (t, {networks, addPod, aliasOf, tunnel}) => {
			const path = await addPod(2);
			const network = await networks.reserve('one', path, signal());
			const alias = await aliasOf(2);
			for (const again of [path, alias]) {
				const error = await t.throwsAsync<AdaptorError>(
					networks.reserve('two', again, signal()),
					{instanceOf: AdaptorError},
					again,
				);
				t.is(error.code, 'already-exists');
				t.is(error.where['sandbox'], 'one');
			}

			await networks.attach(network, '192.168.122.102', signal());
			await t.throwsAsync(networks.reserve('two', alias, signal()), {message: /belongs to another sandbox/v});
			t.deepEqual(await tunnel(network), {remote: '192.168.122.102'});
		},
	);

	contract(
		'what another sandbox abandons by another path, and a late release, leave the tunnel alone',
		async (t, {networks, addPod, aliasOf, tunnel}) => {
			const last = await networks.reserve('last', await addPod(2), signal());
			await networks.release(last, signal());
			const alias = await aliasOf(2);
			const next = await networks.reserve('next', alias, signal());
			await networks.releaseByNetns('last', last.netnsPath, signal());
			await networks.releaseByNetns('another', last.netnsPath, signal());
			t.is(await tunnel(next), 'reserved');
			await networks.attach(next, '192.168.122.102', signal());
			await networks.release(last, signal());
			await networks.release({...last, netnsPath: alias}, signal());
			t.deepEqual(await tunnel(next), {remote: '192.168.122.102'});
		},
	);

	contract(
		'a namespace is present as long as it is the one that was reserved',
		async (t, {networks, addPod, aliasOf, removePod}) => {
			const network = await networks.reserve('one', await addPod(2), signal());
			t.is(await networks.presence(network, signal()), 'present');
			t.is(await networks.presence({...network, netnsPath: await aliasOf(2)}, signal()), 'present');
			await networks.release(network, signal());
			t.is(await networks.presence(network, signal()), 'present');
			await removePod(2);
			t.is(await networks.presence(network, signal()), 'gone');
		},
	);

	contract(
		'a namespace is gone when there is another at its path',
		async (t, {networks, addPod, replacePod, tunnel}) => {
			const network = await networks.reserve('one', await addPod(2), signal());
			await networks.attach(network, '192.168.122.102', signal());
			await replacePod(2);
			t.is(await networks.presence(network, signal()), 'gone');
			await networks.release(network, signal());
			t.is(await tunnel(network), 'none');
			const next = await networks.reserve('two', network.netnsPath, signal());
			await networks.release(network, signal());
			t.is(await tunnel(next), 'reserved');
		},
	);

	contract(
		'a namespace with a file in its place, or whose directory cannot be seen, is not said to be gone',
		async (t, {networks, addPod, unmountPod, hidePods}) => {
			const network = await networks.reserve('one', await addPod(2), signal());
			const hidden = await networks.reserve('two', await addPod(3), signal());
			await unmountPod(2);
			t.is(await networks.presence(network, signal()), 'unknown');
			await hidePods();
			t.is(await networks.presence(hidden, signal()), 'unknown');
		},
	);

	contract(
		'the record of an earlier version tells no identity: its namespace is present or unknown, and can be identified',
		async (t, {networks, addPod, removePod}) => {
			const {netns, ...record} = await networks.reserve('one', await addPod(2), signal());
			t.truthy(netns);
			t.is(await networks.presence(record, signal()), 'present');
			t.deepEqual(await networks.identify(record, signal()), {...record, ...(netns && {netns})});
			await removePod(2);
			t.is(await networks.presence(record, signal()), 'unknown');
			t.deepEqual(await networks.identify(record, signal()), record);
			await networks.release(record, signal());
		},
	);

	contract(
		'what is identified keeps its identity, whatever is at its path',
		async (t, {networks, addPod, replacePod}) => {
			const network = await networks.reserve('one', await addPod(2), signal());
			await replacePod(2);
			t.deepEqual(await networks.identify(network, signal()), network);
		},
	);

	contract('an aborted signal reserves nothing and attaches nothing', async (t, {networks, addPod, tunnel}) => {
		const reason = new AdaptorError({code: 'cancelled', what: 'stopped'});
		const aborted = AbortSignal.abort(reason);
		const netnsPath = await addPod(2);
		t.is(await t.throwsAsync(networks.reserve('one', netnsPath, aborted)), reason);
		const network = await networks.reserve('one', netnsPath, signal());
		t.is(await t.throwsAsync(networks.attach(network, '192.168.122.102', aborted)), reason);
		t.is(await tunnel(network), 'reserved');
	});
}
