/** The definitions of the served services in proto/: loaded once, shared by ttrpc and gRPC. */
import {fileURLToPath} from 'node:url';
import {loadSync, type PackageDefinition, type ServiceDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../core/errors.ts';

/** The answer to Version. The shims of kata ignore it; upstream has always returned this value. */
export const apiVersion = '0.0.0';

/** The messages of hypervisor.proto, in the form of proto-loader. */
export interface CreateVMRequest {
	readonly id: string;
	readonly annotations: Readonly<Record<string, string>>;
	readonly networkNamespacePath: string;
}

export interface CreateVMResponse {
	readonly agentSocketPath: string;
}

export interface SandboxRequest {
	readonly id: string;
}

export interface Version {
	readonly version: string;
}

/** The messages of podvminfo.proto. */
export interface GetInfoRequest {
	readonly PodName: string;
	readonly PodNamespace: string;
	readonly Wait: boolean;
}

export interface GetInfoResponse {
	readonly VMID: string;
}

export interface Contract {
	/** The whole definition, for reflection. */
	readonly definition: PackageDefinition;
	readonly hypervisor: ServiceDefinition;
	readonly podVmInfo: ServiceDefinition;
}

const protoDirectory = fileURLToPath(new URL('../../proto/', import.meta.url));

export function loadContract(directory: string = protoDirectory): Contract {
	// Field names as in the .proto files of kata; absent fields get the defaults of proto3.
	const definition = loadSync(['hypervisor.proto', 'podvminfo.proto'], {
		includeDirs: [directory],
		keepCase: true,
		defaults: true,
	});
	const service = (name: string): ServiceDefinition => {
		const found = definition[name];
		if (found === undefined || 'format' in found) {
			throw new AdaptorError({
				code: 'internal',
				what: 'A .proto file does not define an expected service',
				where: {service: name, directory},
			});
		}

		return found;
	};

	return {definition, hypervisor: service('hypervisor.Hypervisor'), podVmInfo: service('podvminfo.PodVMInfo')};
}
