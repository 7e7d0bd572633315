import test from 'ava';
import fc from 'fast-check';
import {LibvirtError, remoteError} from '../../../src/libvirt/wire/errors.ts';
import {PacketDecoder} from '../../../src/libvirt/wire/packet.ts';
import {procedures, type Procedure} from '../../../src/libvirt/wire/procedures.ts';
import {decode, encode, XdrError} from '../../../src/libvirt/wire/xdr.ts';
import {bytesOf, type golden} from '../golden.ts';

const uuid = Buffer.from('dfe224cb28fb8dd0c4b264eb3f0f4566', 'hex');
const all = Object.entries(procedures) as unknown as ReadonlyArray<readonly [string, Procedure<unknown, unknown>]>;

function bodyOf(name: keyof typeof golden): Buffer {
	const [packet] = [...new PacketDecoder().push(bytesOf(name))];
	return packet?.body ?? Buffer.alloc(0);
}

test('arguments have the bytes that virsh sends', t => {
	t.deepEqual(encode(procedures.connectOpen.args, {name: 'test:///default', flags: 0}), bodyOf('openCall'));
	t.deepEqual(encode(procedures.connectSupportsFeature.args, {feature: 10}), bodyOf('keepaliveFeatureCall'));
	t.deepEqual(
		encode(procedures.connectListAllDomains.args, {needResults: 1, flags: 3}),
		bodyOf('listAllDomainsCall'),
	);
	t.deepEqual(encode(procedures.domainLookupByName.args, {name: 'nosuch'}), bodyOf('lookupCall'));
	t.deepEqual(
		encode(procedures.connectGetDomainCapabilities.args, {
			emulatorbin: '/usr/bin/qemu-system-s390x',
			arch: 's390x',
			machine: 's390-ccw-virtio-7.2',
			virttype: 'qemu',
			flags: 0,
		}),
		bodyOf('domainCapabilitiesCall'),
	);
	t.deepEqual(
		encode(procedures.storagePoolGetInfo.args, {pool: {name: 'default-pool', uuid}}),
		bodyOf('poolInfoCall'),
	);
});

test('pools are created and removed with the same numbers and arguments as in virsh', t => {
	const pool = {name: 'p', uuid: Buffer.from('6695eb01f6a4830479aa97f2502e193f', 'hex')};
	const sent = <Args>({number, args}: Procedure<Args, unknown>, value: Args): unknown => ({
		procedure: number,
		body: encode(args, value),
	});
	const recorded = (name: keyof typeof golden): unknown => {
		const [packet] = [...new PacketDecoder().push(bytesOf(name))];
		return {procedure: packet?.procedure, body: packet?.body};
	};
	const xml =
		"<pool type='dir'><name>p</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid><target><path>/p</path></target></pool>";
	t.deepEqual(sent(procedures.storagePoolDefineXml, {xml, flags: 0}), recorded('poolDefineCall'));
	t.deepEqual(decode(procedures.storagePoolDefineXml.result, bodyOf('poolDefineReply')), {pool});
	t.deepEqual(sent(procedures.storagePoolBuild, {pool, flags: 0}), recorded('poolBuildCall'));
	t.deepEqual(sent(procedures.storagePoolCreate, {pool, flags: 0}), recorded('poolCreateCall'));
	t.deepEqual(sent(procedures.storagePoolSetAutostart, {pool, autostart: 1}), recorded('poolAutostartCall'));
	t.deepEqual(sent(procedures.storagePoolUndefine, {pool}), recorded('poolUndefineCall'));
});

test('what libvirtd answers is read', t => {
	t.deepEqual(decode(procedures.authList.result, bodyOf('authListReply')), {types: [0]});
	t.is(bodyOf('openReply').length, 0);
	t.deepEqual(decode(procedures.connectListAllDomains.result, bodyOf('listAllDomainsReply')), {
		domains: [{name: 'test', uuid: Buffer.from('6695eb01f6a4830479aa97f2502e193f', 'hex'), id: 1}],
		ret: 1,
	});
	t.deepEqual(decode(procedures.nodeGetInfo.result, bodyOf('nodeInfoReply')), {
		model: 'i686',
		memory: 3_145_728n,
		cpus: 16,
		mhz: 1400,
		nodes: 2,
		sockets: 2,
		cores: 2,
		threads: 2,
	});
	t.deepEqual(decode(procedures.storagePoolLookupByName.result, bodyOf('poolLookupReply')), {
		pool: {name: 'default-pool', uuid},
	});
	t.deepEqual(decode(procedures.storagePoolGetInfo.result, bodyOf('poolInfoReply')), {
		state: 2,
		capacity: 107_374_182_400n,
		allocation: 0n,
		available: 107_374_182_400n,
	});
});

test("an answer that is an error keeps libvirt's numbers and words", t => {
	const error = new LibvirtError(decode(remoteError, bodyOf('lookupError')), 'domainLookupByName');
	t.like(error, {
		code: 'not-found',
		libvirtCode: 42,
		libvirtDomain: 12,
		level: 2,
		libvirtMessage: 'Domain not found',
		procedure: 'domainLookupByName',
	});
});

test('numbers are unique and names are those of the table', t => {
	t.is(new Set(all.map(([, {number}]) => number)).size, all.length);
	t.deepEqual(
		all.filter(([name, procedure]) => procedure.name !== name),
		[],
	);
});

test('hostile answers give a value or an XdrError, for every procedure', t => {
	const codecs = [remoteError, ...all.flatMap(([, {args, result}]) => [args, result])];
	fc.assert(
		fc.property(fc.constantFrom(...codecs), fc.uint8Array({maxLength: 120}), fc.nat(3), (codec, bytes, zeros) => {
			try {
				// Small numbers reach deeper than random words do.
				decode(codec, Buffer.concat([Buffer.from([0, 0, 0, zeros]), Buffer.from(bytes)]));
			} catch (error) {
				t.true(error instanceof XdrError, String(error));
			}
		}),
		{numRuns: 20_000},
	);
	t.pass();
});
